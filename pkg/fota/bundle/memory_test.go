package bundle

import (
	"bytes"
	"context"
	"io"
	"runtime"
	"testing"

	bt "birthmark/pkg/fota/bundle/bundletest"
)

// TestMemory: what is allocated for a bundle, all in all and not at one time, does not
// grow with it. (Of xz it does, a dictionary a block, which is garbage right after.)
func TestMemory(t *testing.T) {
	d, r, by := maker(t)
	for _, compression := range []string{"gzip", "zstd"} {
		allocated := func(size int) uint64 {
			r.Files["rootfs.img"] = bytes.Repeat(bt.Noise(1<<10, compression), size>>10)
			files := map[string][]byte{"rootfs.img": r.Files["rootfs.img"], "appfs.img": r.Files["appfs.img"], manifestName: []byte(r.Manifest())}
			whole := bt.Build(t, bt.Squashfs(t, files, "-comp", compression), r.Manifest(), "verity", bt.Message{By: by}).Bytes()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			b, err := Open(bytes.NewReader(whole), int64(len(whole)), &d.trust)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.Verify(context.Background(), nil); err != nil {
				t.Fatal(err)
			}
			if err := b.CopyImage(context.Background(), io.Discard, b.image(t, "rootfs"), nil); err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
			return after.TotalAlloc - before.TotalAlloc
		}
		small, large := allocated(1<<20), allocated(16<<20)
		if most := uint64(4 << 20); large > most || large > small+1<<20 {
			t.Errorf("%s: %d KiB for an image of 1 MiB, %d KiB for one of 16 MiB", compression, small>>10, large>>10)
		}
	}
}
