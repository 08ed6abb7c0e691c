package rauc

import (
	"testing"

	"birthmark/pkg/fota/fotatest"
)

// TestSuite holds that RAUC's own program does what every installer promises.
func TestSuite(t *testing.T) {
	fotatest.Run(t, func(t *testing.T) fotatest.Device { return newDevice(t) })
}
