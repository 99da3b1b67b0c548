package prompt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of the Assuan protocol: libassuan's manual, "Client requests". A line has at most 1000
// octets and a line feed.
const (
	maxLine = 1000
	// maxAnswer is how long a PIN may be.
	maxAnswer = 256
	// maxLines is how many lines a reply may have: a person answers in one.
	maxLines = 200
)

// errProtocol says that a program does not speak the protocol.
var errProtocol = errors.New("it breaks the pinentry protocol")

// replyError is an ERR line.
type replyError struct {
	code int    // of libgpg-error, without its source
	text string // made fit for a line of a log
}

func (e *replyError) Error() string { return fmt.Sprintf("%s (error %d)", e.text, e.code) }

// Codes of libgpg-error with which pinentry answers what a person did.
const (
	codeTimeout        = 62
	codeCanceled       = 99
	codeNotConfirmed   = 114
	codeFullyCancelled = 198
)

// assuan is the client's side of the Assuan protocol. What it has read may be a PIN: wipe
// overwrites that.
type assuan struct {
	r    io.Reader
	w    io.Writer
	buf  [maxLine + 1]byte
	n    int // octets in buf
	used int // of these, the line that was returned last
}

func (a *assuan) wipe() {
	clear(a.buf[:])
	a.n, a.used = 0, 0
}

// line returns the next line without its end. It is valid until the next call.
func (a *assuan) line() ([]byte, error) {
	rest := copy(a.buf[:], a.buf[a.used:a.n])
	clear(a.buf[rest:a.n])
	a.n, a.used = rest, 0
	for {
		if end := bytes.IndexByte(a.buf[:a.n], '\n'); end >= 0 {
			a.used = end + 1
			return bytes.TrimSuffix(a.buf[:end], []byte("\r")), nil
		}
		if a.n == len(a.buf) {
			return nil, fmt.Errorf("%w: a line of more than %d octets", errProtocol, maxLine)
		}
		n, err := a.r.Read(a.buf[a.n:])
		a.n += n
		if n == 0 && err != nil {
			return nil, err
		}
	}
}

// reply reads up to OK, or to ERR, which is a *replyError. It returns what lines with D had, in
// memory that is never moved; the caller wipes it.
func (a *assuan) reply() (data []byte, err error) {
	data = make([]byte, 0, maxAnswer)
	defer func() {
		if err != nil {
			clear(data[:cap(data)])
			data = nil
		}
	}()
	for range maxLines {
		line, err := a.line()
		if err != nil {
			return data, err
		}
		word, rest, _ := bytes.Cut(line, []byte(" "))
		switch string(word) {
		case "OK":
			return data, nil
		case "ERR":
			return data, parseERR(string(rest))
		case "D":
			if data, err = unescape(data, rest); err != nil {
				return data, err
			}
		case "S", "#", "":
		default:
			if !bytes.HasPrefix(word, []byte("#")) {
				return data, fmt.Errorf("%w: neither OK nor ERR", errProtocol)
			}
		}
	}
	return data, fmt.Errorf("%w: a reply of more than %d lines", errProtocol, maxLines)
}

// parseERR reads what follows ERR: a number, in which the upper octet is a source, and a text.
func parseERR(rest string) error {
	number, text, _ := strings.Cut(rest, " ")
	code, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return fmt.Errorf("%w: ERR without a number", errProtocol)
	}
	return &replyError{code: int(code & 0xffff), text: Line(text)}
}

// unescape appends escaped to data, which has room for maxAnswer octets.
func unescape(data, escaped []byte) ([]byte, error) {
	for i := 0; i < len(escaped); i++ {
		c := escaped[i]
		if c == '%' {
			if len(escaped)-i < 3 {
				return data, fmt.Errorf("%w: %% without two digits", errProtocol)
			}
			high, low := digit(escaped[i+1]), digit(escaped[i+2])
			if high < 0 || low < 0 {
				return data, fmt.Errorf("%w: %% without two digits", errProtocol)
			}
			c = byte(high<<4 | low)
			i += 2
		}
		if len(data) == maxAnswer {
			return data, fmt.Errorf("an answer of more than %d octets", maxAnswer)
		}
		data = append(data, c)
	}
	return data, nil
}

func digit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}

// call sends a command and returns its reply.
func (a *assuan) call(command, argument string) ([]byte, error) {
	if _, err := a.w.Write(encode(command, argument)); err != nil {
		return nil, err
	}
	return a.reply()
}

// encode returns the line of a command. What could end the line is escaped, and so is what
// could be taken for an escape. A text that is too long loses its end.
func encode(command, argument string) []byte {
	line := []byte(command)
	if argument != "" {
		line = append(line, ' ')
	}
	const more = "..."
	for len(argument) > 0 {
		r, size := utf8.DecodeRuneInString(argument)
		next := []byte(argument[:size])
		switch {
		case r == utf8.RuneError && size == 1:
			next = []byte("?")
		case r < 0x20 || r == '%' || r == 0x7f:
			next = fmt.Appendf(nil, "%%%02X", r)
		}
		if len(line)+len(next) > maxLine-len(more) {
			line = append(line, more...)
			break
		}
		line = append(line, next...)
		argument = argument[size:]
	}
	return append(line, '\n')
}
