package bundle

import (
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"birthmark/pkg/fota"
)

const (
	imageLimit    = 16
	textLimit     = 1 << 10 // bytes of compatible, description, build
	fileNameLimit = 255     // bytes; NAME_MAX
	slotLimit     = 32      // bytes of the name of a class of slots
	numberLimit   = 1 << 48 // of any number of bytes, so that their sums do not overflow
	manifestName  = "manifest.raucm"
)

// A place is where a manifest stands, which decides what may be in it.
type place string

const (
	outside place = "signed" // in the signature: it alone may name the root of a hash tree
	inside  place = "inner"  // in the payload: it is what a signature over the payload covers
)

// readManifest reads the text of a manifest. It knows every group and every key that a
// bundle may have; what it does not know is refused, since somebody meant something by
// it. Groups of other people's metadata, "meta.NAME", are passed over.
func readManifest(text []byte, at place) (*fota.Manifest, error) {
	groups, err := readKeyFile(text)
	if err != nil {
		return nil, err
	}
	m := &fota.Manifest{Format: fota.FormatPlain} // RAUC's, when nothing is said
	var version, security string
	for _, g := range groups {
		kind, name, _ := strings.Cut(g.name, ".")
		switch {
		case g.name == "update":
			version, err = readUpdate(g, m)
		case g.name == "bundle":
			err = readBundle(g, m, at)
		case kind == "image":
			err = readImage(g, name, m)
		case g.name == "meta.fota":
			err = only(g, "security-version")
			security = g.keys["security-version"]
		case kind == "meta" && name != "":
		case g.name == "hooks":
			err = refuse("hooks", "hooks are programs of the bundle; this device runs none")
		case g.name == "handler":
			err = refuse("handler", "a handler is a program of the bundle; this device runs none")
		default:
			err = refuse("unknown", "group %s is not known", g.name)
		}
		if err != nil {
			return nil, err
		}
	}
	switch {
	case m.Compatible == "":
		return nil, refuse("missing", "it does not say what the bundle is compatible with")
	case len(m.Images) == 0:
		return nil, refuse("missing", "it has no image")
	case at == outside && m.Format != fota.FormatVerity:
		return nil, refuse("format", "it is signed by itself, and names no hash tree over the payload")
	}
	m.Version, err = readVersion(version, security)
	return m, err
}

// readVersion joins the two places in which a security version may stand. Every
// version of `rauc bundle` keeps X.Y.Z+svN; from 1.10 on it keeps [meta.fota], too.
// One is enough; if they are both there, they agree.
func readVersion(version, security string) (fota.Version, error) {
	full := version
	if security != "" && !strings.Contains(version, "+") {
		full += "+sv" + security
	}
	v, err := fota.ParseVersion(full)
	switch {
	case err != nil:
		return fota.Version{}, refuse("version", "%w", err)
	case security != "" && security != strconv.FormatUint(uint64(v.Security), 10):
		return fota.Version{}, refuse("version", "version %s has another security version than meta.fota: %s", version, security)
	case v == fota.Version{}:
		return fota.Version{}, refuse("version", "%v is no release", v)
	}
	return v, nil
}

func readUpdate(g group, m *fota.Manifest) (version string, err error) {
	if err := only(g, "compatible", "version", "description", "build"); err != nil {
		return "", err
	}
	m.Compatible, m.Description, m.Build = g.keys["compatible"], g.keys["description"], g.keys["build"]
	for key, value := range g.keys {
		if len(value) > textLimit {
			return "", refuse("size", "%s has %d bytes, limit %d", key, len(value), textLimit)
		}
		// A description is text for people, and may have lines.
		if key != "description" && strings.ContainsFunc(value, unicode.IsControl) {
			return "", refuse("value", "%s has a control character", key)
		}
	}
	return g.keys["version"], nil
}

func readBundle(g group, m *fota.Manifest, at place) error {
	if err := only(g, "format", "verity-hash", "verity-salt", "verity-size", "crypt-key"); err != nil {
		return err
	}
	// GKeyFile takes an empty value for none at all. Nobody writes it.
	switch format, given := g.keys["format"]; {
	case !given || format == string(fota.FormatPlain):
	case format == string(fota.FormatVerity):
		m.Format = fota.FormatVerity
	case format == "crypt":
		return refuse("crypt", "the bundle is encrypted; this device has no key for it")
	default:
		return refuse("format", "format %q is not known", format)
	}
	delete(g.keys, "format")
	if at == inside || m.Format == fota.FormatPlain {
		// What is said about the hash tree inside of what it covers cannot be true.
		for key := range g.keys {
			return refuse("verity", "%s may stand in a signed manifest with format=verity only", key)
		}
		return nil
	}
	if _, ok := g.keys["crypt-key"]; ok {
		return refuse("crypt", "the bundle is encrypted; this device has no key for it")
	}
	size, ok := decimal(g.keys["verity-size"])
	if !readHash(m.Verity.Root[:], g.keys["verity-hash"]) || !readHash(m.Verity.Salt[:], g.keys["verity-salt"]) || !ok || size%blockSize != 0 {
		return refuse("verity", "the hash tree is not named by 64 hexadecimal digits each of verity-hash and verity-salt, and a verity-size in bytes")
	}
	m.Verity.Size = size
	return nil
}

func readImage(g group, slot string, m *fota.Manifest) error {
	switch {
	case strings.Contains(slot, "."):
		return refuse("variant", "image %s is for one variant of a device; this device knows of none", slot)
	case slot == "" || len(slot) > slotLimit:
		return refuse("value", "%q is no class of slots", g.name)
	case len(m.Images) == imageLimit:
		return refuse("size", "more than %d images", imageLimit)
	}
	if _, ok := g.keys["hooks"]; ok {
		return refuse("hooks", "image %s has hooks, which are programs of the bundle; this device runs none", slot)
	}
	if _, ok := g.keys["adaptive"]; ok {
		return refuse("adaptive", "image %s is made for adaptive updates; this device reads bundles whole", slot)
	}
	if err := only(g, "filename", "size", "sha256"); err != nil {
		return err
	}
	image := fota.Image{Slot: slot, File: g.keys["filename"]}
	var ok bool
	switch {
	case !isFile(image.File):
		return refuse("filename", "image %s: %q is not the name of a file in a bundle", slot, image.File)
	case !readHash(image.SHA256[:], g.keys["sha256"]):
		return refuse("value", "image %s: sha256 has not 64 hexadecimal digits", slot)
	}
	if image.Size, ok = decimal(g.keys["size"]); !ok {
		return refuse("value", "image %s: size is no number of bytes", slot)
	}
	m.Images = append(m.Images, image)
	return nil
}

// only refuses a group that has other keys.
func only(g group, keys ...string) error {
	for _, key := range slices.Sorted(maps.Keys(g.keys)) {
		if !slices.Contains(keys, key) {
			return refuse("unknown", "%s in group %s is not known", key, g.name)
		}
	}
	return nil
}

// isFile reports whether a name is that of a file in the root of the payload, wherever
// it may end up: the manifest itself is not an image.
func isFile(name string) bool {
	return name != "" && name != "." && name != ".." && name != manifestName && len(name) <= fileNameLimit &&
		!strings.ContainsAny(name, `/\`) && !strings.ContainsFunc(name, unicode.IsControl)
}

// decimal reads a positive number in its one shortest form.
func decimal(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && 0 < n && n <= numberLimit && strconv.FormatInt(n, 10) == s
}

// readHash fills h from lower-case hexadecimal digits.
func readHash(h []byte, s string) bool {
	if len(s) != hex.EncodedLen(len(h)) || strings.ToLower(s) != s {
		return false
	}
	_, err := hex.Decode(h, []byte(s))
	return err == nil
}
