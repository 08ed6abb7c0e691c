package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"birthmark/internal/agent"
	"birthmark/internal/agent/api"
	"birthmark/internal/agent/doctor"
	"birthmark/internal/cli"
	"birthmark/internal/config"
)

const (
	statusPatience = 3 * time.Second  // an agent that says nothing of itself for so long hangs
	doctorPatience = 16 * time.Second // an examination takes 15 s at most
	doctorLimit    = 20 * time.Second // whatever hangs
)

// ask asks the agent whose door and state are those of conf, for something that names
// its state folder. It says whether there is an answer; why not, where somebody
// should know, it writes to notes.
func ask[T any](ctx context.Context, conf *config.Loaded, door, path string, patience time.Duration, folder func(T) string, notes io.Writer) (answer T, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	text, err := api.Get(ctx, conf.Config.Doors.Folder, door, path)
	if err == nil {
		err = json.Unmarshal(text, &answer)
	}
	switch {
	case errors.Is(err, api.ErrNobody):
		return answer, false
	case err != nil && ctx.Err() == context.DeadlineExceeded:
		fmt.Fprintln(notes, "birthmark: "+cli.Line(fmt.Errorf("the agent does not answer within %v", patience), "it hangs: what follows was seen without it"))
		return answer, false
	case err != nil:
		fmt.Fprintln(notes, "birthmark: "+cli.Line(err, agent.Hint(err)))
		return answer, false
	}
	// Otherwise it is the agent of another state folder.
	return answer, folder(answer) == conf.Config.Device.State
}

// status is what the agent says of the device or, where none answers, its state file.
func status(ctx context.Context, conf *config.Loaded, notes io.Writer) (agent.Status, error) {
	s, ok := ask(ctx, conf, api.Status, "/v1/status", statusPatience, func(s agent.Status) string { return s.Folder }, notes)
	if ok {
		return s, nil
	}
	return agent.ReadStatus(conf.Config.Device.State)
}

// examine lets the agent examine the device or, where none answers, does it. An agent
// that says nothing of itself is not asked for what takes long.
func examine(ctx context.Context, conf *config.Loaded, notes io.Writer) doctor.Report {
	ctx, cancel := context.WithTimeout(ctx, doctorLimit)
	defer cancel()
	_, ok := ask(ctx, conf, api.Status, "/v1/status", statusPatience, func(s agent.Status) string { return s.Folder }, notes)
	if ok {
		r, ok := ask(ctx, conf, api.Control, "/v1/doctor", doctorPatience, func(r doctor.Report) string { return r.Folder }, notes)
		if ok {
			return r
		}
	}
	return doctor.Examine(ctx, doctor.Patient{Config: conf, Installer: thisInstaller.Status})
}
