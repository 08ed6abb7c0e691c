//go:build race

package tpm_test

// raceDetector: the test is five to ten times as slow. The long ones do a share of
// their work then; `make test` runs them without, too.
const raceDetector = true
