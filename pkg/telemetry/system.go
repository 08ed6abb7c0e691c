package telemetry

import (
	"bufio"
	"bytes"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// readLimit is what is read of a file of the kernel's, in bytes.
const readLimit = 64 << 10

// A System is one reading of the machine. What could not be read is nil and left
// out of the JSON.
type System struct {
	Time         string    `json:"time"`                    // RFC 3339, UTC
	UptimeS      *float64  `json:"uptime_s,omitempty"`      // seconds since boot
	CPUPercent   *float64  `json:"cpu_percent,omitempty"`   // of all CPUs, since the reading before; the first one since boot
	Load         []float64 `json:"load,omitempty"`          // over 1, 5 and 15 minutes
	Memory       *Space    `json:"memory,omitempty"`        // free: what programs can have without swapping
	Disk         *Space    `json:"disk,omitempty"`          // of the state folder; free: what unprivileged programs can have
	TemperatureC *float64  `json:"temperature_c,omitempty"` // °C, of the hottest sensor
}

// A Space is so much of something, in bytes.
type Space struct {
	Total uint64 `json:"total"`
	Free  uint64 `json:"free"`
}

// A Sampler reads the machine from /proc and /sys. The zero Sampler works. It is
// not safe for concurrent use.
type Sampler struct {
	// Root is where proc and sys are found; default "/".
	Root string
	// Disk is a folder on the file system to be measured; default Root.
	Disk string
	// Now is what time it is; default time.Now.
	Now func() time.Time

	busy, total uint64 // CPU ticks at the reading before
}

// Sample takes a reading. It never fails: what cannot be read is left out.
func (s *Sampler) Sample() System {
	now := time.Now
	if s.Now != nil {
		now = s.Now
	}
	return System{
		Time:         now().UTC().Format(time.RFC3339),
		UptimeS:      first(s.floats("proc/uptime", 1)),
		CPUPercent:   s.cpu(),
		Load:         s.floats("proc/loadavg", 3),
		Memory:       s.memory(),
		Disk:         s.disk(),
		TemperatureC: s.temperature(),
	}
}

func (s *Sampler) path(name string) string {
	root := s.Root
	if root == "" {
		root = "/"
	}
	return filepath.Join(root, name)
}

// read reads a file of the kernel's; nil when it cannot be read.
func read(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, readLimit))
	if err != nil {
		return nil
	}
	return b
}

// floats reads the first n numbers of a file; nil when they are not there.
func (s *Sampler) floats(name string, n int) []float64 {
	fields := strings.Fields(string(read(s.path(name))))
	if len(fields) < n {
		return nil
	}
	numbers := make([]float64, n)
	for i := range numbers {
		f, err := strconv.ParseFloat(fields[i], 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return nil
		}
		numbers[i] = f
	}
	return numbers
}

// cpu is how busy the CPUs were since the call before, in percent (proc(5), /proc/stat).
func (s *Sampler) cpu() *float64 {
	line, _, _ := bytes.Cut(read(s.path("proc/stat")), []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 6 || fields[0] != "cpu" {
		return nil
	}
	var busy, total uint64
	// user nice system idle iowait irq softirq steal; guest time is in user already.
	for i, field := range fields[1:min(len(fields), 9)] {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return nil
		}
		total += n
		if i != 3 && i != 4 {
			busy += n
		}
	}
	busyBefore, totalBefore := s.busy, s.total
	s.busy, s.total = busy, total
	if total <= totalBefore || busy < busyBefore { // iowait may go back
		return nil
	}
	return tenth(100 * min(1, float64(busy-busyBefore)/float64(total-totalBefore)))
}

// memory reads /proc/meminfo (proc(5)), which counts in KiB.
func (s *Sampler) memory() *Space {
	var m Space
	found := 0
	lines := bufio.NewScanner(bytes.NewReader(read(s.path("proc/meminfo"))))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		var into *uint64
		switch fields[0] {
		case "MemTotal:":
			into = &m.Total
		case "MemAvailable:":
			into = &m.Free
		default:
			continue
		}
		n, err := strconv.ParseUint(fields[1], 10, 54)
		if err != nil {
			return nil
		}
		*into = n << 10
		found++
	}
	if found != 2 {
		return nil
	}
	return &m
}

func (s *Sampler) disk() *Space {
	dir := s.Disk
	if dir == "" {
		dir = s.path("")
	}
	var st syscall.Statfs_t
	if syscall.Statfs(dir, &st) != nil {
		return nil
	}
	block := uint64(st.Frsize)
	return &Space{Total: st.Blocks * block, Free: st.Bavail * block}
}

// temperature is that of the hottest thermal zone or, where there is none, of the
// hottest sensor. Sensors that are switched off cannot be read, or tell nonsense.
func (s *Sampler) temperature() *float64 {
	const least, most = -60, 200 // °C
	for _, pattern := range []string{"sys/class/thermal/thermal_zone*/temp", "sys/class/hwmon/hwmon*/temp*_input"} {
		files, _ := filepath.Glob(s.path(pattern))
		hottest := math.Inf(-1)
		for _, file := range files {
			milli, err := strconv.ParseInt(string(bytes.TrimSpace(read(file))), 10, 32)
			if c := float64(milli) / 1000; err == nil && c > least && c < most {
				hottest = max(hottest, c)
			}
		}
		if !math.IsInf(hottest, -1) {
			return tenth(hottest)
		}
	}
	return nil
}

func first(f []float64) *float64 {
	if len(f) == 0 {
		return nil
	}
	return &f[0]
}

// tenth rounds to one decimal.
func tenth(f float64) *float64 {
	f = math.Round(f*10) / 10
	return &f
}
