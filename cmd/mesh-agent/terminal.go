package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// terminal returns standard input if a person sits there.
func (a *app) terminal() (*os.File, bool) {
	f, ok := a.stdin.(*os.File)
	if !ok {
		return nil, false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return f, err == nil
}

// ask reads a secret from a terminal without echo. Whatever interrupts, stops or quits the program, the terminal
// is as it was before, and when the program goes on nothing is echoed either.
func (a *app) ask(ctx context.Context, tty *os.File, prompt string) ([]byte, error) {
	fd := int(tty.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("read terminal: %w", err)
	}
	quiet := *before
	quiet.Iflag |= unix.ICRNL
	quiet.Lflag = quiet.Lflag&^unix.ECHO | unix.ICANON | unix.ISIG
	begin := func() error {
		err := unix.IoctlSetTermios(fd, unix.TCSETS, &quiet)
		fmt.Fprintf(a.stderr, "%s: ", prompt)
		return err
	}
	end := func() error {
		fmt.Fprintln(a.stderr)
		return unix.IoctlSetTermios(fd, unix.TCSETS, before)
	}
	signals := make(chan os.Signal, 3)
	signal.Notify(signals, unix.SIGTSTP, unix.SIGCONT, unix.SIGQUIT)
	defer signal.Stop(signals)
	if err := begin(); err != nil {
		return nil, fmt.Errorf("read terminal: %w", err)
	}
	answers := readSecret(fd)
	for {
		select {
		case got := <-answers:
			if err := errors.Join(got.err, end()); err != nil {
				clear(got.text)
				return nil, fmt.Errorf("read terminal: %w", err)
			}
			return got.text, nil
		case s := <-signals:
			switch s {
			case unix.SIGTSTP:
				err = errors.Join(end(), unix.Kill(unix.Getpid(), unix.SIGSTOP))
			case unix.SIGCONT:
				err = begin()
			default:
				return nil, errors.Join(context.Canceled, end())
			}
			if err != nil {
				return nil, fmt.Errorf("read terminal: %w", err)
			}
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), end())
		}
	}
}

// secretLine is what was typed, or why nothing was.
type secretLine struct {
	text []byte
	err  error
}

// readSecret reads a line from a terminal in the background, which outlives an interrupt, with which the program ends.
func readSecret(fd int) <-chan secretLine {
	answers := make(chan secretLine, 1)
	go func() {
		text, err := readLine(fd)
		answers <- secretLine{text, err}
	}()
	return answers
}

const longestLine = 4096 // of a terminal: N_TTY_BUF_SIZE of Linux

// readLine reads a line without its end. The caller wipes it.
func readLine(fd int) ([]byte, error) {
	line := make([]byte, 0, longestLine)
	for len(line) < longestLine {
		n, err := unix.Read(fd, line[len(line):longestLine])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil && n == 0:
			err = io.ErrUnexpectedEOF
			fallthrough
		case err != nil:
			clear(line)
			return nil, err
		}
		line = line[:len(line)+n]
		if text, ok := bytes.CutSuffix(line, []byte("\n")); ok {
			return text, nil
		}
	}
	clear(line)
	return nil, fmt.Errorf("longer than %d octets", longestLine)
}
