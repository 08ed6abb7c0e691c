package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math"
	"slices"
	"testing"

	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle/bundletest"
)

// planted returns data with its tree behind it, and what has to be signed.
func planted(data []byte) ([]byte, fota.Verity) {
	tree, root := bundletest.Tree(data, bundletest.Salt)
	v := fota.Verity{Root: [32]byte(root), Salt: [32]byte(bundletest.Salt), Size: int64(len(tree))}
	return slices.Concat(data, tree), v
}

func grow(t *testing.T, r io.ReaderAt, payload int64, v fota.Verity) *spans {
	t.Helper()
	tree, data, err := newTree(r, payload, v)
	if err != nil {
		t.Fatal(err)
	}
	return newSpans(tree, data)
}

func TestTreeHandsOutTheData(t *testing.T) {
	// One level; a full block of hashes; one more; three levels.
	for _, blocks := range []int{2, 31, 32, 33, 128, 129, 128*128 + 1} {
		data := bundletest.Noise(blocks*blockSize, "data")
		payload, v := planted(data)
		s := grow(t, bytes.NewReader(payload), int64(len(payload)), v)
		var last int64
		if err := s.visit(&tally{report: func(done, total int64) { last = done }}).rest(context.Background()); err != nil {
			t.Fatalf("%d blocks: %v", blocks, err)
		}
		if last != int64(len(data)) {
			t.Errorf("%d blocks: reported %d bytes of %d", blocks, last, len(data))
		}
		got, err := io.ReadAll(io.NewSectionReader(s, 0, s.size))
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d blocks: got %d bytes, %v, want the %d that were signed", blocks, len(got), err, len(data))
		}
		for _, at := range []int64{0, 1, 4095, 4096, int64(len(data)) - 1, int64(len(data)) - 4097} {
			p := make([]byte, 7000)
			n, err := s.ReadAt(p, at)
			want := data[at:min(at+7000, int64(len(data)))]
			if !bytes.Equal(p[:n], want) || (n < len(p)) != (err == io.EOF) {
				t.Errorf("%d blocks: at %d got %d bytes, %v, want %d", blocks, at, n, err, len(want))
			}
		}
	}
}

func TestTreeRefusesEveryChange(t *testing.T) {
	data := bundletest.Noise(150*blockSize, "data")
	payload, v := planted(data)
	hashed := map[int64]string{} // offset of a byte: code
	for at := int64(0); at < int64(len(data)); at += 40009 {
		hashed[at] = "block"
	}
	hashed[int64(len(data))-1] = "block"
	for at := int64(len(data)); at < int64(len(payload)); at += 1009 {
		hashed[at] = "tree"
	}
	hashed[int64(len(payload))-1] = "tree"
	for at, code := range hashed {
		bent := bytes.Clone(payload)
		bent[at] ^= 0x10
		err := grow(t, bytes.NewReader(bent), int64(len(bent)), v).visit(&tally{}).rest(context.Background())
		wantRefusal(t, "a bit of a byte changed", err, fota.StagePayload, code)
	}
	other := v
	other.Root[0] ^= 1
	wantRefusal(t, "another root", grow(t, bytes.NewReader(payload), int64(len(payload)), other).visit(&tally{}).rest(context.Background()), fota.StagePayload, "tree")
	other = v
	other.Salt[31] ^= 1
	wantRefusal(t, "another salt", grow(t, bytes.NewReader(payload), int64(len(payload)), other).visit(&tally{}).rest(context.Background()), fota.StagePayload, "tree")
}

// TestTreePadding: a tree that is right by its hashes, and has something behind them.
func TestTreePadding(t *testing.T) {
	data := bundletest.Noise(3*blockSize, "data")
	payload, v := planted(data)
	payload[len(payload)-1] = 1
	tr := tree{salt: v.Salt, hash: sha256.New()}
	v.Root = [32]byte(tr.sum(payload[len(data):]))
	err := grow(t, bytes.NewReader(payload), int64(len(payload)), v).visit(&tally{}).rest(context.Background())
	wantRefusal(t, "a byte behind the last hash", err, fota.StagePayload, "padding")
}

func TestTreeGeometry(t *testing.T) {
	big := int64(5 << 30)
	for _, good := range []struct{ data, tree int64 }{
		{2 * blockSize, 1 * blockSize},
		{129 * blockSize, 3 * blockSize},
		{big, (big/blockSize/128 + 80 + 1) * blockSize},
	} {
		if _, data, err := newTree(nil, good.data+good.tree, fota.Verity{Size: good.tree}); err != nil || data != good.data {
			t.Errorf("%d bytes and a tree of %d: got %d, %v", good.data, good.tree, data, err)
		}
	}
	for _, bad := range []struct {
		name          string
		payload, tree int64
	}{
		{"no tree", 8192, 0},
		{"a negative tree", 8192, -4096},
		{"the most negative tree", 8192, math.MinInt64 &^ 4095},
		{"a tree and no data", 4096, 4096},
		{"a tree larger than the payload", 8192, 16384},
		{"the largest tree", 8192, math.MaxInt64 &^ 4095},
		{"one block of data", 8192, 4096},
		{"a payload that is no blocks", 12289, 4096},
		{"a tree that is no blocks", 12288, 4095},
		{"a tree one block too short", 129*4096 + 2*4096, 2 * 4096},
		{"a tree one block too long", 129*4096 + 4*4096, 4 * 4096},
		{"the largest payload", math.MaxInt64 &^ 4095, 4096},
		{"the largest of both", math.MaxInt64 &^ 4095, math.MaxInt64&^4095 - 8192},
	} {
		_, _, err := newTree(nil, bad.payload, fota.Verity{Size: bad.tree})
		wantRefusal(t, bad.name, err, fota.StagePayload, "geometry")
	}
}

// TestSecondReading: of a source that says something else about a block every other time,
// it is what was hashed that is handed out.
func TestSecondReading(t *testing.T) {
	data := bundletest.Noise(20*spanSize, "data")
	payload, v := planted(data)
	asked := map[int64]int{}
	s := newSource(payload)
	s.after = func(p []byte, off int64) {
		for i := int64(0); i < int64(len(p)); i += blockSize {
			if asked[off+i]++; asked[off+i]%2 == 0 && off+i < int64(len(data)) {
				p[i] ^= 1
			}
		}
	}
	verified := grow(t, s, int64(len(payload)), v)
	if err := verified.visit(&tally{}).rest(context.Background()); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, len(data))
	n, err := verified.ReadAt(p, 0)
	wantRefusal(t, "the second time", err, fota.StagePayload, "block")
	if n != 0 {
		t.Errorf("the second time: got %d bytes, want none", n)
	}
	// Only the span that was refused before is honest now.
	if n, err = verified.ReadAt(p, 0); err == nil || n != spanSize || !bytes.Equal(p[:n], data[:n]) {
		t.Errorf("the third time: got %d bytes, %v, want %d, which are those that were signed", n, err, spanSize)
	}
}

func TestTreeTrouble(t *testing.T) {
	payload, v := planted(bundletest.Noise(300*blockSize, "data"))
	broken := errors.New("connection reset")
	for _, from := range []int64{0, 128 << 10, 300 * blockSize} {
		s := newSource(payload)
		s.before = func(off int64, n int) error {
			if off >= from {
				return broken
			}
			return nil
		}
		verified := grow(t, s, int64(len(payload)), v)
		err := verified.visit(&tally{}).rest(context.Background())
		wantTrouble(t, "a source that fails", err)
		if !errors.Is(err, broken) {
			t.Errorf("got %v, want what was wrong with the source", err)
		}
		s.before = nil
		if err := verified.visit(&tally{}).rest(context.Background()); err != nil {
			t.Errorf("the source is back: got %v", err)
		}
	}
}

func FuzzVerity(f *testing.F) {
	data := bundletest.Noise(40*blockSize, "data")
	payload, v := planted(data)
	f.Add(int64(len(payload)), v.Size, int64(5000), 9000, []byte(nil), int64(0))
	f.Add(int64(math.MaxInt64), int64(4096), int64(-1), 1, []byte{1}, int64(77))
	f.Fuzz(func(t *testing.T, size, treeSize, off int64, n int, patch []byte, at int64) {
		bent := bytes.Clone(payload)
		if at >= 0 && at < int64(len(bent)) {
			copy(bent[at:], patch)
		}
		w := v
		w.Size = treeSize
		tr, length, err := newTree(bytes.NewReader(bent), size, w)
		if err != nil {
			wantStage(t, err, fota.StagePayload)
			return
		}
		if length <= 0 || length+treeSize != size {
			t.Fatalf("%d bytes with a tree of %d: %d of data", size, treeSize, length)
		}
		s := newSpans(tr, length)
		p := make([]byte, min(max(n, 0), 1<<20))
		// Whatever the numbers and the bytes: what is handed out was signed.
		if n, _ := s.ReadAt(p, off); n > 0 && !bytes.Equal(p[:n], data[off:off+int64(n)]) {
			t.Error("bytes were handed out that nobody signed")
		}
	})
}

// TestBeyondFourGiB: positions are counted in 64 bits all the way.
func TestBeyondFourGiB(t *testing.T) {
	const size = 5 << 30
	// The levels of a tree over nothing but zeros, the leaves first. All blocks of a level
	// are alike, since 5 GiB fill all of them but the root's.
	var levels [][]byte
	for below, block := int64(size/blockSize), make([]byte, blockSize); below > 1; {
		hashes := bytes.Repeat(bundletest.Root(block, bundletest.Salt), int(below))
		hashes = append(hashes, make([]byte, (blockSize-len(hashes)%blockSize)%blockSize)...)
		levels = append(levels, hashes)
		block, below = hashes[:blockSize], int64(len(hashes)/blockSize)
	}
	slices.Reverse(levels)
	grown := slices.Concat(levels...)
	v := fota.Verity{Root: [32]byte(bundletest.Root(grown, bundletest.Salt)), Salt: [32]byte(bundletest.Salt), Size: int64(len(grown))}
	s := &sparse{tail: grown, size: size + int64(len(grown))}
	verified := grow(t, s, s.size, v)
	p := make([]byte, 3*blockSize)
	for _, at := range []int64{0, 1<<31 - 5000, 1<<32 - 5000, size - int64(len(p))} {
		if n, err := verified.ReadAt(p, at); err != nil || n != len(p) {
			t.Errorf("at %d: got %d bytes, %v", at, n, err)
		}
	}
	s.head = []byte{0, 0, 1}
	verified = grow(t, s, s.size, v)
	if _, err := verified.ReadAt(p, 1<<32); err != nil {
		t.Errorf("a block above 4 GiB: %v", err)
	}
	_, err := verified.ReadAt(p, 0)
	wantRefusal(t, "the block 4 GiB below", err, fota.StagePayload, "block")
}
