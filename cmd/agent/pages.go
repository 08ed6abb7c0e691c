//go:build pages

// Built with the tag "pages", and never shipped so, the program has one verb more: it
// writes the manual and the shells' completions from the same texts as --help.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"birthmark/internal/config"
)

func init() { extra = append(extra, pagesCommand) }

func pagesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "pages DIR TEXT...", Short: "write man pages and completions into DIR", Hidden: true, Args: cobra.MinimumNArgs(1),
		Long: "Each TEXT is a Markdown file NAME.SECTION.md that becomes the man page NAME.SECTION.",
		RunE: func(cmd *cobra.Command, args []string) error { return pages(cmd.Root(), args[0], args[1:]) },
	}
}

func pages(root *cobra.Command, dir string, texts []string) error {
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	date := time.Unix(epoch, 0).UTC()
	root.DisableAutoGenTag = true
	root.InitDefaultCompletionCmd()
	man := func(section string) string { return filepath.Join(dir, "share", "man", "man"+section) }
	shell := func(name string) string { return filepath.Join(dir, "share", name) }
	for _, folder := range []string{man("1"), man("5"), man("8"), shell("bash-completion/completions"), shell("zsh/vendor-completions"), shell("fish/vendor_completions.d")} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
	}
	if err := doc.GenManTree(root, &doc.GenManHeader{Section: "1", Date: &date, Source: "Birthmark", Manual: "Birthmark"}, man("1")); err != nil {
		return err
	}
	var reference bytes.Buffer
	if err := config.Doc(&reference); err != nil {
		return err
	}
	_, body, _ := bytes.Cut(reference.Bytes(), []byte("\n\n")) // after its title
	page := func(name, section string, text []byte) error {
		head := fmt.Appendf(nil, "%% %q %q %q %q %q\n\n", name, section, date.Format("Jan 2006"), "Birthmark", "Birthmark")
		return os.WriteFile(filepath.Join(man(section), name+"."+section), md2man.Render(append(head, text...)), 0o644)
	}
	errs := []error{page("birthmark.toml", "5", append([]byte("# NAME\nbirthmark.toml - configuration of the birthmark agent\n\n# DESCRIPTION\n"), body...))}
	for _, file := range texts {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name := filepath.Base(file[:len(file)-len(".8.md")])
		section := file[len(file)-len("8.md") : len(file)-len(".md")]
		errs = append(errs, page(name, section, text))
	}
	return errors.Join(append(errs,
		root.GenBashCompletionFileV2(filepath.Join(shell("bash-completion/completions"), "birthmark"), true),
		root.GenZshCompletionFile(filepath.Join(shell("zsh/vendor-completions"), "_birthmark")),
		root.GenFishCompletionFile(filepath.Join(shell("fish/vendor_completions.d"), "birthmark.fish"), true))...)
}
