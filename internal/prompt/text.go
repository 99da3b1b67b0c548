package prompt

import (
	"context"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxName is how much of a name is shown, in characters.
const maxName = 80

// Line makes a name from outside fit to stand in a line of a question: it neither ends the line,
// turns the direction of the text, nor is markup, and it is not longer than 80 characters.
func Line(name string) string {
	var b strings.Builder
	n := 0
	for i, r := range name {
		if n++; n > maxName {
			b.WriteString("...")
			break
		}
		switch {
		case !unicode.IsPrint(r), r == '<', r == '>', r == '&', r == utf8.RuneError && name[i] != 0xef:
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// reasonKey is the key of a reason in a context.
type reasonKey struct{}

// WithReason notes in a context for whom its operation is done, in lines for people, for
// whoever has to show a notice on the way and knows the device alone.
func WithReason(ctx context.Context, reason func() string) context.Context {
	return context.WithValue(ctx, reasonKey{}, reason)
}

// ReasonOf returns the reason that WithReason noted, or "".
func ReasonOf(ctx context.Context) string {
	if reason, ok := ctx.Value(reasonKey{}).(func() string); ok {
		return reason()
	}
	return ""
}
