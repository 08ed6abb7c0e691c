package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"birthmark/internal/cli"
	"birthmark/internal/lab/sign"
	"birthmark/pkg/fota"
)

func signCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "sign", Short: "sign what devices take from nobody else", Args: cobra.NoArgs,
		Example: "  birthmark-lab sign firmware --help",
	}
	cmd.AddCommand(signFirmwareCommand(), signPermitCommand())
	return cmd
}

func signFirmwareCommand() *cobra.Command {
	var dir, version, uki, out string
	var images []string
	var r sign.Release
	var by sign.Signer
	cmd := &cobra.Command{
		Use: "firmware", Short: "make a firmware bundle with rauc, and verify it as a device does", Args: cobra.NoArgs,
		Long: `Make a firmware bundle out of images, with rauc bundle (Debian's packages rauc and
squashfs-tools), and verify it as a device does. If a device would refuse it, or
anything else is wrong, what was at BUNDLE stays as it is. Otherwise the record of the
release is written, too: BUNDLE.json, with the digests of all that is in it.

The signer is the one of the lab in --dir, whose code-signing CA is made at the first
time. A device is given DIR/firmware/anchors.pem, signing-cas.pem and crls.pem. Whoever
has a CA names files in place of --dir: --cert, --key, --intermediate, and what devices
are given, --anchors, --signing-cas, --crls. Certificate and key may be URLs of
PKCS #11; rauc takes the PIN from RAUC_PKCS11_PIN.

A version is X.Y.Z+svN. N, the security version, only ever grows: devices that have run
one never go below it. A UKI is the one of that version (IMAGE_VERSION in its
os-release), and signed for Secure Boot before it comes here.

If SOURCE_DATE_EPOCH is set, that is the time of all files in the bundle, and when the
release was built.`,
		Example: `  birthmark-lab sign firmware --dir ~/lab --compatible acme-gw --version 1.1.0+sv2 \
      --image rootfs=rootfs.squashfs --uki linux-1.1.0.efi --out acme-gw-1.1.0.raucb
  birthmark-lab sign firmware --cert release.pem --key release.key --intermediate ca.pem \
      --anchors root.pem --signing-cas ca.pem --crls crls.pem \
      --compatible acme-gw --version 1.1.0+sv2 --image rootfs=rootfs.ext4 --out acme-gw-1.1.0.raucb`,
	}
	f := cmd.Flags()
	signerFlags(cmd, &dir, &by)
	f.StringVar(&r.Compatible, "compatible", "", "the `devices` that the release is for")
	f.StringVar(&version, "version", "", "`X.Y.Z+svN`")
	f.StringVar(&r.Description, "description", "", "`text` for people")
	f.StringVar(&r.Build, "build", "", "`text` by which its maker knows the build")
	f.StringArrayVar(&images, "image", nil, "`SLOT=FILE`: an image and the class of slots that it is for; may be repeated")
	f.StringVar(&uki, "uki", "", "`file` with the unified kernel image that starts the release")
	f.StringVar(&out, "out", "", "the `BUNDLE` to write")
	f.StringVar((*string)(&r.Compression), "compression", string(sign.Zstd), "zstd, gzip, xz, or fast: zstd at once, for a larger bundle")
	asJSON := cli.JSONFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if err := checkSigner(dir, by); err != nil {
			return err
		}
		if out == "" {
			return usageError("--out is missing: name the bundle to write, --out BUNDLE")
		}
		if r.Version, err = fota.ParseVersion(version); err != nil {
			return usageError(fmt.Sprintf("--version: %v", err))
		}
		if r.Images, err = parseImages(images, uki); err != nil {
			return err
		}
		if r.Time, err = buildTime(); err != nil {
			return err
		}
		if dir != "" {
			if by, err = sign.Lab(dir); err != nil {
				return err
			}
		}
		record, err := sign.Firmware(cmd.Context(), r, by, out, tell)
		if err != nil {
			return err
		}
		if *asJSON {
			return cli.PrintJSON(cmd.OutOrStdout(), record)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), `Wrote %s, %d bytes, and its record %s.json.
A device takes it as %s %s until %s, if it is given this, and CRLs
anew before they are over:

  --anchors %s --signing-cas %s --crls %s
`, out, record.Bundle.Size, out, record.Compatible, record.Version, record.Signer.NotAfter.Format(time.DateOnly),
			quote(by.Anchors), quote(by.SigningCAs), quote(by.CRLs))
		return err
	}
	return cmd
}

// tell says to a person who waits what is done. A script is told how it ended.
func tell(step string) {
	if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		fmt.Fprintln(os.Stderr, step)
	}
}

// signerFlags say who signs.
func signerFlags(cmd *cobra.Command, dir *string, by *sign.Signer) {
	f := cmd.Flags()
	f.StringVar(dir, "dir", "", "`folder` of the lab that signs")
	f.StringVar(&by.Certificate, "cert", "", "`file` with the signer's certificate")
	f.StringVar(&by.Key, "key", "", "`file` with the signer's key")
	f.StringArrayVar(&by.Intermediates, "intermediate", nil, "`file` with a CA between signer and root; may be repeated")
	f.StringVar(&by.Anchors, "anchors", "", "`file` with the roots that devices trust")
	f.StringVar(&by.SigningCAs, "signing-cas", "", "`file` with the CAs that devices let issue signers")
	f.StringVar(&by.CRLs, "crls", "", "`file` with a CRL of every CA, root included")
}

// checkSigner wants a lab or a CA's files, whole.
func checkSigner(dir string, by sign.Signer) error {
	var given, missing []string
	for _, f := range []struct{ name, value string }{
		{"--cert", by.Certificate}, {"--key", by.Key}, {"--anchors", by.Anchors}, {"--signing-cas", by.SigningCAs}, {"--crls", by.CRLs},
	} {
		if f.value == "" {
			missing = append(missing, f.name)
		} else {
			given = append(given, f.name)
		}
	}
	if len(by.Intermediates) > 0 {
		given = append(given, "--intermediate")
	}
	switch {
	case dir == "" && len(given) == 0:
		return usageError("nobody signs: name the folder of the lab, --dir DIR, or the files of a CA, see --help")
	case dir != "" && len(given) > 0:
		return usageError(fmt.Sprintf("--dir is a lab that signs, and %s somebody else who does: choose one", given[0]))
	case dir == "" && len(missing) > 0:
		return usageError(fmt.Sprintf("without --dir a CA of your own signs, and %s is missing", strings.Join(missing, ", ")))
	}
	return nil
}

func parseImages(args []string, uki string) (images []sign.Image, err error) {
	for _, arg := range args {
		slot, path, ok := strings.Cut(arg, "=")
		switch {
		case !ok || slot == "" || path == "":
			return nil, usageError(fmt.Sprintf("--image %q: want SLOT=FILE", arg))
		case slot == fota.UKISlot:
			return nil, usageError("an image for the slot uki is named with --uki FILE")
		}
		images = append(images, sign.Image{Slot: slot, Path: path})
	}
	if uki != "" {
		images = append(images, sign.Image{Slot: fota.UKISlot, Path: uki})
	}
	return images, nil
}

// buildTime is SOURCE_DATE_EPOCH (reproducible-builds.org), or now.
func buildTime() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		return time.Now(), nil
	}
	// squashfs has 32 bits for it.
	seconds, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return time.Time{}, usageError(fmt.Sprintf("SOURCE_DATE_EPOCH is %q: want seconds since 1970", text))
	}
	return time.Unix(int64(seconds), 0), nil
}
