package telemetry

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// machine is a tree of files as the kernel shows them.
func machine(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func healthy() map[string]string {
	return map[string]string{
		"proc/uptime":                          "12345.67 9876.54\n",
		"proc/loadavg":                         "0.10 0.25 1.50 1/123 4567\n",
		"proc/stat":                            "cpu  100 20 30 800 50 0 0 0 7 7\ncpu0 100 20 30 800 50 0 0 0 7 7\n",
		"proc/meminfo":                         "MemTotal:        1000 kB\nMemFree:          100 kB\nMemAvailable:     600 kB\n",
		"sys/class/thermal/thermal_zone0/temp": "41250\n",
		"sys/class/thermal/thermal_zone1/temp": "48990\n",
		"sys/class/hwmon/hwmon0/temp1_input":   "99000\n",
	}
}

func TestSampleOfAHealthyMachine(t *testing.T) {
	s := Sampler{Root: machine(t, healthy()), Now: func() time.Time { return time.Unix(0, 0) }}
	got := s.Sample()
	if got.Disk == nil || got.Disk.Total < got.Disk.Free || got.Disk.Total == 0 {
		t.Errorf("disk %+v of a real file system", got.Disk)
	}
	got.Disk = nil
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"time":"1970-01-01T00:00:00Z","uptime_s":12345.67,"cpu_percent":15,"load":[0.1,0.25,1.5],` +
		`"memory":{"total":1024000,"free":614400},"temperature_c":49}`
	if string(text) != want {
		t.Errorf("sample:\n%s\nwant:\n%s", text, want)
	}
}

func TestCPUIsThatSinceTheReadingBefore(t *testing.T) {
	root := machine(t, healthy())
	s := Sampler{Root: root}
	s.Sample()
	for _, tc := range []struct {
		stat string
		want float64 // -1 for none
	}{
		{"cpu  200 20 30 900 50 0 0 0", 50},
		{"cpu  200 20 30 900 50 0 0 0", -1}, // no time has passed
		{"cpu  300 20 30 900 50 0 0 0", 100},
		{"cpu  300 20 30 1899 50 0 0 1", 0.1},
		{"cpu  1 1 1 1 1", -1}, // another boot cannot be, but must not matter
		{"cpu  2 1 1 2 1", 50},
		{"cpu  x 1 1 2 1", -1},
		{"intr 1 2 3 4 5 6", -1},
	} {
		if err := os.WriteFile(filepath.Join(root, "proc/stat"), []byte(tc.stat+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		got := -1.0
		if c := s.Sample().CPUPercent; c != nil {
			got = *c
		}
		if got != tc.want {
			t.Errorf("%q: %v %%, want %v", tc.stat, got, tc.want)
		}
	}
}

func TestWhatCannotBeReadIsLeftOut(t *testing.T) {
	all := []string{"cpu_percent", "disk", "load", "memory", "temperature_c", "time", "uptime_s"}
	thermal := "sys/class/thermal/thermal_zone"
	for name, tc := range map[string]struct {
		files   map[string]string // "-" removes
		missing string
	}{
		"everything there":      {nil, ""},
		"no uptime":             {map[string]string{"proc/uptime": "-"}, "uptime_s"},
		"empty uptime":          {map[string]string{"proc/uptime": ""}, "uptime_s"},
		"uptime is no number":   {map[string]string{"proc/uptime": "NaN"}, "uptime_s"},
		"endless uptime":        {map[string]string{"proc/uptime": "Inf"}, "uptime_s"},
		"two loads":             {map[string]string{"proc/loadavg": "1 2"}, "load"},
		"no stat":               {map[string]string{"proc/stat": "-"}, "cpu_percent"},
		"short stat":            {map[string]string{"proc/stat": "cpu 1 2 3 4"}, "cpu_percent"},
		"no MemAvailable":       {map[string]string{"proc/meminfo": "MemTotal: 1 kB\n"}, "memory"},
		"memory beyond numbers": {map[string]string{"proc/meminfo": "MemTotal: 1 kB\nMemAvailable: 99999999999999999999 kB\n"}, "memory"},
		"no sensor": {map[string]string{thermal + "0/temp": "-", thermal + "1/temp": "-", "sys/class/hwmon/hwmon0/temp1_input": "-"},
			"temperature_c"},
		"sensors that are off": {map[string]string{thermal + "0/temp": "-274000", thermal + "1/temp": "", "sys/class/hwmon/hwmon0/temp1_input": "-"},
			"temperature_c"},
	} {
		files := healthy()
		maps.Copy(files, tc.files)
		maps.DeleteFunc(files, func(_, text string) bool { return text == "-" })
		s := Sampler{Root: machine(t, files)}
		text, err := json.Marshal(s.Sample())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got map[string]any
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		want := slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == tc.missing })
		if keys := slices.Sorted(maps.Keys(got)); !slices.Equal(keys, want) {
			t.Errorf("%s: %s", name, strings.Join(keys, " "))
		}
	}
}

func TestHwmonIsSecondChoice(t *testing.T) {
	files := healthy()
	files["sys/class/thermal/thermal_zone0/temp"], files["sys/class/thermal/thermal_zone1/temp"] = "nonsense", "999999"
	s := Sampler{Root: machine(t, files)}
	if c := s.Sample().TemperatureC; c == nil || *c != 99 {
		t.Errorf("temperature %v, want 99, that of the other sensor", c)
	}
}

func TestSampleOfThisMachine(t *testing.T) {
	s := Sampler{Disk: t.TempDir()}
	got := s.Sample()
	if got.UptimeS == nil || *got.UptimeS <= 0 || got.CPUPercent == nil || *got.CPUPercent < 0 || *got.CPUPercent > 100 {
		t.Errorf("uptime %v, CPU %v", got.UptimeS, got.CPUPercent)
	}
	if got.Memory == nil || got.Memory.Free == 0 || got.Memory.Free > got.Memory.Total {
		t.Errorf("memory %+v", got.Memory)
	}
	if got.Disk == nil || got.Disk.Free > got.Disk.Total || len(got.Load) != 3 {
		t.Errorf("disk %+v, load %v", got.Disk, got.Load)
	}
	if now, err := time.Parse(time.RFC3339, got.Time); err != nil || time.Since(now).Abs() > time.Minute {
		t.Errorf("time %q (%v)", got.Time, err)
	}
	s.Disk = filepath.Join(s.Disk, "gone")
	if got := s.Sample().Disk; got != nil {
		t.Errorf("disk %+v of a folder that is not there", got)
	}
}
