//go:build !race

package telemetry

// memoryLimit is what a device may take while it is attacked, in bytes.
const memoryLimit = 64 << 20
