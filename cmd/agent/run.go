package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"birthmark/internal/agent"
	"birthmark/internal/cli"
	"birthmark/internal/config"
	"birthmark/internal/sysroot"
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
help: the state folder belongs to another TPM, or the TPM was cleared.

SIGHUP has it read its configuration again. One with mistakes is refused, as is one
with another section [device], tpm.address or [doors]; the log says so, and the old one
stays in force. Under systemd it tells when it is ready and how it is (sd_notify),
serves the watchdog, takes the sockets that it is given, and logs to the journal.`,
		Example: "  birthmark run\n  birthmark run --config /etc/birthmark/birthmark.toml",
	}
	file := configFlag(cmd)
	asJSON := cmd.Flags().Bool("json", false, "write the log as JSON, a line an entry")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		conf, err := load(*file)
		if err != nil {
			return err
		}
		return run(cmd.Context(), conf, func() (*config.Loaded, error) { return load(*file) },
			func(level slog.Leveler) slog.Handler { return newLog(cmd.ErrOrStderr(), level, *asJSON) })
	}
	return cmd
}

// stopLimit is for the agent to come to an end. What would take longer is cut off: a
// device can be cut off at any moment.
const stopLimit = 1800 * time.Millisecond

// run runs the agent until ctx ends. again reads the configuration once more.
func run(ctx context.Context, conf *config.Loaded, again func() (*config.Loaded, error), newLog func(slog.Leveler) slog.Handler) error {
	var level slog.LevelVar
	setLevel(&level, conf)
	entries := make(chan struct{}, 1)
	a, err := agent.New(&conf.Config, slog.New(waker{newLog(&level), entries}))
	if err != nil {
		return err
	}
	sysroot.Tell(a.Log())
	a.UpdateBy(thisInstaller, func(ctx context.Context) error { return restartSystem(ctx, systemBus) })
	var inForce atomic.Pointer[config.Loaded]
	inForce.Store(conf)
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	h := herald{
		log: a.Log(), opened: a.Opened(), status: a.Status, stuck: a.Stuck,
		send: sdNotify, watchdog: watchdogInterval(a.Log()), entries: entries, hangups: hangups,
		reload: func(ctx context.Context) error {
			next, err := again()
			if err == nil {
				err = a.Reload(ctx, &next.Config)
			}
			if err == nil {
				inForce.Store(next)
				setLevel(&level, next)
			}
			return err
		},
	}
	doors := openDoors(a, inForce.Load)
	telling, stop := context.WithCancel(ctx) // an agent may end by itself
	ended := make(chan error, 1)
	go func() {
		var told sync.WaitGroup
		told.Go(func() { h.run(telling) })
		err := errors.Join(a.Run(ctx), doors.Close())
		stop()
		told.Wait()
		ended <- errors.Join(err, a.Close())
	}()
	late := make(chan struct{})
	defer context.AfterFunc(ctx, func() { time.AfterFunc(stopLimit, func() { close(late) }) })()
	select {
	case err := <-ended:
		return err
	case <-late:
		return fmt.Errorf("cut off what does not end within %v of a stop: %w", stopLimit, context.Canceled)
	}
}

func setLevel(level *slog.LevelVar, conf *config.Loaded) {
	if err := level.UnmarshalText([]byte(conf.Config.Log.Level)); err != nil {
		panic("log.level was checked: " + err.Error())
	}
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
