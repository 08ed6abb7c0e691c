//go:build !race

package tpm_test

const raceDetector = false
