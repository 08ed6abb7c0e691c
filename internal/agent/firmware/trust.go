package firmware

import (
	"errors"

	"birthmark/internal/config"
	"birthmark/internal/sysroot"
	"birthmark/pkg/clock"
	"birthmark/pkg/cms"
	"birthmark/pkg/fota"
	"birthmark/pkg/fota/bundle"
)

// Folders are where a device has the files that say whom it believes, the administrator's
// before the image's.
var Folders = []string{sysroot.Path("/etc/birthmark/firmware"), sysroot.Path("/usr/lib/birthmark/firmware")}

// trust is whom the device's files name, or those that flags name in their place. What is
// wrong with the former is what the installer would say, and with the latter a mistake.
func (o *Options) trust(c *clock.Clock, folders []string) (*cms.Trust, error) {
	files := bundle.TrustIn(folders...)
	flags := map[string]string{} // that were given, by the code of a refusal
	for _, f := range []struct {
		flag, path, code string
		files            *[]string
	}{
		{"--anchors", o.Anchors, "anchors", &files.Anchors},
		{"--signing-cas", o.SigningCAs, "issuers", &files.Issuers},
		{"--crls", o.CRLs, "crl", &files.CRLs},
	} {
		if f.path != "" {
			*f.files, flags[f.code] = []string{f.path}, f.flag
		}
	}
	t, err := files.Read()
	var no *fota.Refusal
	switch {
	case errors.As(err, &no) && flags[no.Code] != "":
		return nil, &config.Error{Msg: flags[no.Code] + ": " + no.Err.Error()}
	case err != nil:
		return nil, err
	}
	t.Grace, t.Usage, t.Now, t.Build = o.CRLGrace, Purposes[o.EKU], c.Now(), c.Verify
	return t, nil
}
