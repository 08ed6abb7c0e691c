package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"birthmark/internal/agent"
	"birthmark/internal/cli"
	"birthmark/internal/config"
)

// configFlag adds --config to a verb that reads the configuration.
func configFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("config", "", "read this configuration `file` instead of /usr/lib/birthmark and /etc/birthmark")
}

// load reads the configuration and refuses one that cannot work.
func load(file string) (*config.Loaded, error) {
	conf, err := config.Load(config.Options{File: file, Env: os.Environ()})
	if err != nil {
		return nil, err
	}
	if found := conf.Check(); len(found) > 0 {
		return nil, cli.Errors(found)
	}
	return conf, nil
}

func runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "run", Short: "run the agent: be born, enrol, stay in service", Args: cobra.NoArgs,
		Long: `Run the agent in the foreground, until it is stopped by SIGTERM or SIGINT.

What is missing (TPM, network, disk space) is waited for, with a line in the log
for every try. It ends by itself, with exit code 1, only where waiting cannot
help: the state folder belongs to another TPM, or the TPM was cleared.`,
		Example: "  birthmark run\n  birthmark run --config /etc/birthmark/birthmark.toml",
	}
	file := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "write the log as JSON, a line an entry")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		conf, err := load(*file)
		if err != nil {
			return err
		}
		var options slog.HandlerOptions
		var level slog.Level
		if err := level.UnmarshalText([]byte(conf.Config.Log.Level)); err != nil {
			return &config.Error{Msg: fmt.Sprintf("log.level: %v", err)}
		}
		options.Level = level
		log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &options))
		if *asJSON {
			log = slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), &options))
		}
		a, err := agent.New(&conf.Config, log)
		if err != nil {
			return err
		}
		doors := openDoors(a, conf)
		return errors.Join(a.Run(cmd.Context()), doors.Close(), a.Close())
	}
	return cmd
}

func configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "show, check or explain the configuration"}
	show := &cobra.Command{
		Use: "show", Short: "print the configuration in force", Args: cobra.NoArgs,
		Example: "  birthmark config show --origin",
	}
	file, origin := configFlag(show), show.Flags().Bool("origin", false, "say where each value comes from")
	showJSON := show.Flags().Bool("json", false, "print JSON, with origins")
	show.RunE = func(cmd *cobra.Command, _ []string) error {
		conf, err := config.Load(config.Options{File: *file, Env: os.Environ()})
		if err != nil {
			return err
		}
		if *showJSON {
			return cli.PrintJSON(cmd.OutOrStdout(), conf.Values())
		}
		return conf.Show(cmd.OutOrStdout(), *origin)
	}
	check := &cobra.Command{
		Use: "check", Short: "look for mistakes in the configuration", Args: cobra.NoArgs,
		Example: "  birthmark config check && systemctl restart birthmark-agent",
	}
	checked, checkJSON := configFlag(check), check.Flags().Bool("json", false, "print what was read as JSON")
	check.RunE = func(cmd *cobra.Command, _ []string) error {
		conf, err := load(*checked)
		if err != nil {
			return err
		}
		if *checkJSON {
			return cli.PrintJSON(cmd.OutOrStdout(), struct {
				Files []string `json:"files"`
			}{conf.Files})
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), "the configuration is fine")
		return err
	}
	doc := &cobra.Command{
		Use: "doc", Short: "print the reference of all settings (Markdown)", Args: cobra.NoArgs,
		Example: "  birthmark config doc | less",
		RunE:    func(cmd *cobra.Command, _ []string) error { return config.Doc(cmd.OutOrStdout()) },
	}
	cmd.AddCommand(show, check, doc, configOpensslCommand())
	return cmd
}
