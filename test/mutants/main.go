// Mutants tests the tests: each patch in this folder breaks one promise of the
// code, in a copy of the tree, and the test that it names has to go red.
//
//	go run ./test/mutants -n 3 -seed 4a1b2c3    a few, chosen by the seed
//	go run ./test/mutants -only store-folder    those whose name has that in it
//	go run ./test/mutants -v                    all, and what the tests say of them
//
// A fault that no test notices, a patch that does not apply, one that does not
// compile and a test that is red without any fault are all failures: exit code 1.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

const folder = "test/mutants"

func main() {
	n := flag.Int("n", 0, "try so many, chosen by the seed; 0 for all")
	seed := flag.String("seed", "", "any text")
	only := flag.String("only", "", "try those with this in their name")
	verbose := flag.Bool("v", false, "print what the tests say")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *n, *seed, *only, *verbose); err != nil {
		fmt.Fprintln(os.Stderr, "mutants: "+err.Error())
		os.Exit(1)
	}
}

func run(ctx context.Context, n int, seed, only string, verbose bool) error {
	all, err := load(os.DirFS("."), folder)
	if err != nil {
		return err
	}
	chosen := choose(all, n, seed, only)
	if len(chosen) == 0 {
		return fmt.Errorf("there is no mutant with %q in its name", only)
	}
	fmt.Printf("mutants: %d of %d, seed %s\n", len(chosen), len(all), cmp.Or(seed, "none"))

	bench, err := newBench(ctx)
	if err != nil {
		return err
	}
	defer bench.remove()
	return judge(bench, chosen, verbose)
}

// choose is the mutants to try, in the order of their names. The same seed chooses
// the same of the same.
func choose(all []mutant, n int, seed, only string) []mutant {
	chosen := slices.DeleteFunc(slices.Clone(all), func(m mutant) bool { return !strings.Contains(m.name, only) })
	if n > 0 && n < len(chosen) {
		h := fnv.New64a()
		h.Write([]byte(seed))
		r := rand.New(rand.NewPCG(h.Sum64(), 0))
		r.Shuffle(len(chosen), func(i, j int) { chosen[i], chosen[j] = chosen[j], chosen[i] })
		chosen = chosen[:n]
	}
	slices.SortFunc(chosen, func(a, b mutant) int { return cmp.Compare(a.name, b.name) })
	return chosen
}

// judge tries the mutants and prints a line for each. The tests that they name
// have to be green first: a test that is always red notices nothing.
func judge(b *bench, chosen []mutant, verbose bool) error {
	green := map[test]bool{}
	for _, m := range chosen {
		if green[m.red] {
			continue
		}
		if err := b.green(m.red); err != nil {
			return fmt.Errorf("%v without any fault: %w", m.red, err)
		}
		green[m.red] = true
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\nmutant\tverdict\tseconds\ttest")
	var faults []error
	for _, m := range chosen {
		begin := time.Now()
		verdict := "red"
		said, err := b.try(m)
		if verbose {
			fmt.Printf("\n== %s: %s\n%s", m.name, m.breaks, said)
		}
		if timedOut(said) {
			verdict = "red, late" // it waits for something that never comes
		}
		if err != nil {
			verdict = "FAILED"
			faults = append(faults, fmt.Errorf("%s: %w", m.name, err))
		}
		fmt.Fprintf(table, "%s\t%s\t%.1f\t%v\n", m.name, verdict, time.Since(begin).Seconds(), m.red)
	}
	return errors.Join(append(faults, table.Flush())...)
}
