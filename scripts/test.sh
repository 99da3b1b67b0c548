#!/bin/sh
# Everything that must hold, in the order in which failures are cheapest to find.
# FUZZTIME sets how long each decoder is fuzzed: a number of inputs (20000x) or a time (1m).
set -eu
cd "$(dirname "$0")/.."
GO=${GO:-go}
# Inputs, because Go's engine may fail without any when its time is up in the middle of one.
FUZZTIME=${FUZZTIME:-5000x}

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
CGO_ENABLED=0 $GO vet ./...

step "staticcheck"
$GO tool staticcheck ./...

step "tests"
# Processes that tests start would take a second each to end. The time limit is for tests that hang, on slow machines too.
GORACE=atexit_sleep_ms=0 $GO test -race -timeout 60m ./...

step "fuzzing, $FUZZTIME each"
targets=$(grep -r --include='*_test.go' -o -E '^func Fuzz[A-Za-z0-9_]+' . | sed 's|/[^/]*:func |:|' | sort)
if [ -z "$targets" ]; then
	echo "no fuzz targets found" >&2
	exit 1
fi
for target in $targets; do
	$GO test -run '^$' -fuzz "^${target#*:}\$" -fuzztime "$FUZZTIME" "${target%%:*}"
done

step "benchmarks, once each"
$GO test -run '^$' -bench . -benchtime 1x ./...

step "all passed"
