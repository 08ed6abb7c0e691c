package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// What is used of CycloneDX 1.6, in the order and the spelling of its schema
// (bom-1.6.schema.json).
type (
	bom struct {
		BOMFormat    string       `json:"bomFormat"`
		SpecVersion  string       `json:"specVersion"`
		SerialNumber string       `json:"serialNumber,omitempty"`
		Version      int          `json:"version"`
		Metadata     metadata     `json:"metadata"`
		Components   []component  `json:"components"`
		Dependencies []dependency `json:"dependencies"`
	}
	metadata struct {
		Timestamp string    `json:"timestamp"`
		Component component `json:"component"`
	}
	component struct {
		Type       string     `json:"type"`
		BOMRef     string     `json:"bom-ref"`
		Name       string     `json:"name"`
		Version    string     `json:"version"`
		Hashes     []hash     `json:"hashes,omitempty"`
		Licenses   []license  `json:"licenses,omitempty"`
		PURL       string     `json:"purl,omitempty"`
		Properties []property `json:"properties,omitempty"`
	}
	hash struct {
		Alg     string `json:"alg"`
		Content string `json:"content"`
	}
	// license is either an identifier or an expression.
	license struct {
		License    *licenseID `json:"license,omitempty"`
		Expression string     `json:"expression,omitempty"`
	}
	licenseID struct {
		ID string `json:"id"`
	}
	property struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	// dependency lists what a component is made of. A module has no entry:
	// which of them needs which is not in a binary.
	dependency struct {
		Ref       string   `json:"ref"`
		DependsOn []string `json:"dependsOn"`
	}
)

func (l license) name() string {
	if l.License != nil {
		return l.License.ID
	}
	return l.Expression
}

// spdx is one SPDX licence, or an expression of several.
func spdx(text string) []license {
	if strings.Contains(text, " ") {
		return []license{{Expression: text}}
	}
	return []license{{License: &licenseID{ID: text}}}
}

func readBinary(path string) (binary, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return binary{}, fmt.Errorf("cannot read the build information of %s: %w", path, err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return binary{}, err
	}
	sum := sha256.Sum256(content)
	return binary{filepath.Base(path), hex.EncodeToString(sum[:]), info}, nil
}

// write makes the bill of materials of binaries that are sorted by name.
func write(version string, at time.Time, binaries []binary, where sources) ([]byte, bom, error) {
	b := bom{
		BOMFormat: "CycloneDX", SpecVersion: "1.6", Version: 1,
		Metadata: metadata{
			Timestamp: at.UTC().Format(time.RFC3339),
			Component: component{Type: "application", BOMRef: "birthmark", Name: "birthmark", Version: version,
				Licenses: spdx("Apache-2.0")},
		},
	}
	whole := dependency{Ref: "birthmark"}
	libraries := map[string]component{} // by reference
	var parts []dependency
	for _, bin := range binaries {
		c := component{Type: "application", BOMRef: "birthmark/" + bin.name, Name: bin.name, Version: version,
			Hashes: []hash{{"SHA-256", bin.sha256}}, Licenses: spdx("Apache-2.0")}
		for _, s := range bin.info.Settings {
			c.Properties = append(c.Properties, property{"birthmark:build:" + s.Key, s.Value})
		}
		b.Components = append(b.Components, c)
		whole.DependsOn = append(whole.DependsOn, c.BOMRef)

		part := dependency{Ref: c.BOMRef}
		for _, m := range modules(bin.info) {
			lib, err := library(m, where)
			if err != nil {
				return nil, bom{}, err
			}
			libraries[lib.BOMRef] = lib
			part.DependsOn = append(part.DependsOn, lib.BOMRef)
		}
		slices.Sort(part.DependsOn)
		parts = append(parts, part)
	}
	for _, ref := range slices.Sorted(maps.Keys(libraries)) {
		b.Components = append(b.Components, libraries[ref])
	}
	b.Dependencies = append([]dependency{whole}, parts...)

	text, err := encode(b)
	if err != nil {
		return nil, bom{}, err
	}
	b.SerialNumber = serial(text)
	text, err = encode(b)
	return text, b, err
}

// standardLibrary is the name under which package URLs know it.
const standardLibrary = "std"

// modules is every module of other people's in a binary: those that its build
// information lists, and the standard library, which has the toolchain's version.
// With GOFIPS140 its cryptography is another release's, which its settings say.
func modules(info *buildinfo.BuildInfo) []debug.Module {
	all := []debug.Module{{Path: standardLibrary, Version: strings.TrimPrefix(info.GoVersion, "go")}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		all = append(all, *m)
	}
	return all
}

func library(m debug.Module, where sources) (component, error) {
	name, err := where.licence(m)
	if err != nil {
		return component{}, err
	}
	// The package URL's type "golang" wants lower case; the module's path keeps
	// its own in the name.
	purl := "pkg:golang/" + strings.ToLower(m.Path) + "@" + strings.ReplaceAll(m.Version, "+", "%2B")
	c := component{Type: "library", BOMRef: purl, Name: m.Path, Version: m.Version, Licenses: spdx(name), PURL: purl}
	if m.Sum != "" {
		// Go's hash is over a list of files, so it is no hash of one as
		// CycloneDX means it. It is what go.sum and the checksum database hold.
		c.Properties = []property{{"birthmark:go.sum", m.Sum}}
	}
	return c, nil
}

// serial makes a UUID of content: version 8 of RFC 9562 section 5.8.
func serial(content []byte) string {
	u := sha256.Sum256(content)
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

func encode(b bom) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(b)
	return out.Bytes(), err
}
