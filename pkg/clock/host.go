package clock

// Host returns a Clock for a tool that a person, or a factory's script, runs: it
// takes the system's clock for synchronised whenever that is not before the
// build, since on a workbench a clock that runs is a clock that is right. So a
// certificate that expired yesterday is refused there, which a device that does
// not know the time cannot do.
func Host() *Clock {
	c := System()
	c.trusted = func() bool { return synchronised() || !c.system().Before(c.build) }
	return c
}
