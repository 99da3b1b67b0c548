#!/bin/sh
# Everything that must hold, in the order in which failures are cheapest to find.
# FUZZTIME sets how long each decoder is fuzzed.
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
FUZZTIME=${FUZZTIME:-3s}

step() { printf '\n== %s\n' "$*"; }

step "test dependencies"
scripts/install-test-deps.sh
PATH="$PATH:/usr/sbin:/sbin"
export PATH

step "gofmt"
unformatted=$(git ls-files -co --exclude-standard -- '*.go' | xargs gofmt -l)
if [ -n "$unformatted" ]; then
	printf 'not formatted:\n%s\n' "$unformatted" >&2
	exit 1
fi

step "static build"
CGO_ENABLED=0 $GO build ./...

step "go vet"
$GO vet ./...

step "staticcheck"
$GO tool staticcheck ./...

step "tests"
GORACE=atexit_sleep_ms=0 $GO test -race ./... # else every process that tests start takes a second to end

step "fuzzing, $FUZZTIME each"
targets=$(grep -r --include='*_test.go' -o -E '^func Fuzz[A-Za-z0-9_]+' . | sed 's|/[^/]*:func |:|' | sort)
if [ -z "$targets" ]; then
	echo "no fuzz targets found" >&2
	exit 1
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
fuzz() { # fuzz FOLDER:NAME
	$GO test -run '^$' -fuzz "^${1#*:}\$" -fuzztime "$FUZZTIME" "${1%%:*}" >"$log" 2>&1 || status=$?
	cat "$log"
}
for target in $targets; do
	status=0
	fuzz "$target"
	# When its time is up in the middle of an input, Go's engine may fail with these words
	# alone. An input that fails is named and written down: that is never tried again.
	if [ "$status" -ne 0 ] && grep -q '^ *context deadline exceeded$' "$log" && ! grep -q 'Failing input' "$log"; then
		status=0
		fuzz "$target"
	fi
	[ "$status" -eq 0 ] || exit "$status"
done

step "benchmarks, once each"
$GO test -run '^$' -bench . -benchtime 1x ./...

step "all passed"
