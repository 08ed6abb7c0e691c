// Vuln is the gate against known vulnerabilities: it asks govulncheck which
// entries of the Go vulnerability database concern code that the binaries can
// reach, and fails if there is one.
//
//	VULNDB=go-vulndb.tar.xz vuln ./cmd/agent ./cmd/lab
//
// VULNDB names a copy of the database: a folder in the layout of vuln.go.dev, or
// a tar of one. The gate asks no server, so its verdict is as old as the copy; it
// says how old that is. VULNDB=none says that there is no copy and that this is
// known: then nothing is checked, and the gate says so.
//
// A gate that never closes proves nothing. Before the binaries a small module is
// looked at that calls a library with a known hole, and must be found.
//
// Exit codes: 0 nothing found, or VULNDB=none; 1 something found, or the gate does
// not work; 3 no database.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

const (
	// The control: paho reads strings of more than 65,535 bytes wrongly.
	controlFolder = "test/vuln/testdata/control"
	controlID     = "GO-2025-4173"

	// toolFolder is a module of its own: what govulncheck needs is not what we need.
	toolFolder = "test/vuln/tool"
	toolPath   = "golang.org/x/vuln/cmd/govulncheck"

	// oldAge is when a copy of the database is due for another.
	oldAge = 120 * 24 * time.Hour
)

var errNoDatabase = errors.New("no vulnerability database: set VULNDB to a folder or a tar of one, or to none")

func main() {
	err := run(os.Getenv("VULNDB"), os.Args[1:])
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "vuln: "+err.Error())
	if errors.Is(err, errNoDatabase) {
		os.Exit(3)
	}
	os.Exit(1)
}

func run(place string, packages []string) error {
	switch place {
	case "":
		return errNoDatabase
	case "none":
		fmt.Println("vuln: NOT CHECKED: there is no vulnerability database here")
		return nil
	}
	tmp, err := os.MkdirTemp("", "vuln-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)

	db, err := openDatabase(place, tmp)
	if err != nil {
		return err
	}
	fmt.Printf("vuln: database of %s\n", db.modified.Format(time.DateOnly))
	if age := time.Since(db.modified); age > oldAge {
		fmt.Printf("vuln: WARNING: the database is %d days old, get a newer one\n", int(age.Hours()/24))
	}
	scan := scanner{program: filepath.Join(tmp, "govulncheck"), db: db}
	if err := build(scan.program); err != nil {
		return err
	}

	found, err := scan.look(controlFolder, ".")
	if err != nil {
		return err
	}
	if !found.called(controlID) {
		return fmt.Errorf("the gate does not work: it did not find %s in %s", controlID, controlFolder)
	}
	fmt.Printf("vuln: control: %s is found\n", controlID)

	if found, err = scan.look(".", packages...); err != nil {
		return err
	}
	for _, f := range found {
		fmt.Println("vuln: " + f.String())
	}
	calls := found.calls()
	fmt.Printf("vuln: %v: %d called, %d more in modules of which other parts are used\n", packages, calls, len(found)-calls)
	if calls > 0 {
		return fmt.Errorf("%d known vulnerabilities can be reached", calls)
	}
	return nil
}

// build builds govulncheck as go.sum of its own module says.
func build(program string) error {
	cmd := exec.Command("go", "build", "-C", toolFolder, "-o", program, toolPath)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("cannot build govulncheck: %w", err)
	}
	return nil
}
