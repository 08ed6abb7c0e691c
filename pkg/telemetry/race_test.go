//go:build race

package telemetry

// memoryLimit is more with the race detector, which keeps books on all memory.
const memoryLimit = 4 * 64 << 20
