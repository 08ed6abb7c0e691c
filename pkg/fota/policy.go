package fota

// A Policy decides whether a device wants a release, from what is known about both
// before a byte of it is written. It is what the owner and the device say; what the
// maker says was verified before.
type Policy struct {
	// Compatible is what this device is; a bundle is for exactly one such name.
	Compatible string
	// Running is the release that runs. The zero Version, when the image does not say,
	// is older than every other.
	Running Version
	// Floor is the oldest security version that may run; nobody's permission goes below.
	Floor uint32
	// Slots are the classes of slots that the device has, and how many bytes an image for
	// each may have. Every image needs one. A class without an image is not written: the
	// other slot of it keeps what it has, and what starts from it is the business of
	// whoever made a release that leaves it out.
	Slots map[string]int64
	// AllowPlain lets bundles pass that have no hash tree.
	AllowPlain bool
	// Permit is the one older release that may pass: the owner has signed for it.
	Permit Version
}

// LeapLimit is by how much a release may raise the security version: the floor is a
// counter that goes up by ones. A version that was a slip of the pen, or a date, would wear
// it out and have no way back.
const LeapLimit = 64

// Check refuses a release that the device does not want, at [StagePolicy]:
//
//	compatible  it is for other devices
//	plain       it has no hash tree
//	floor       its security version is below the floor
//	same        it runs already: there is nothing to do
//	downgrade   it is older, or its security version is, than what runs
//	leap        its security version is too far above that of what runs
//	slot        an image is for a slot that the device does not have
//	size        an image is larger than its slot
func (p Policy) Check(m *Manifest) error {
	no := func(code, format string, args ...any) error { return Refuse(StagePolicy, code, format, args...) }
	older := m.Version.Compare(p.Running) < 0 || m.Version.Security < p.Running.Security
	switch {
	case m.Compatible != p.Compatible:
		return no("compatible", "it is for %q, this device is %q", m.Compatible, p.Compatible)
	case m.Format != FormatVerity && !p.AllowPlain:
		return no("plain", "its format is %s, and only verity is allowed", m.Format)
	case m.Version.Security < p.Floor:
		return no("floor", "%v is below the floor of this device, security version %d", m.Version, p.Floor)
	case m.Version == p.Running:
		return no("same", "%v runs already", m.Version)
	case older && m.Version != p.Permit:
		return no("downgrade", "%v is older than %v, which runs", m.Version, p.Running)
	case p.Running != Version{} && m.Version.Security > p.Running.Security && m.Version.Security-p.Running.Security > LeapLimit:
		return no("leap", "the security version of %v is more than %d above that of %v, which runs", m.Version, LeapLimit, p.Running)
	}
	for _, image := range m.Images {
		switch size, ok := p.Slots[image.Slot]; {
		case !ok:
			return no("slot", "image %s is for slot %s, which this device does not have", image.File, image.Slot)
		case image.Size > size:
			return no("size", "image %s has %d bytes, its slot %d", image.File, image.Size, size)
		}
	}
	return nil
}
