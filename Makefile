# The two commands of this project are `make demo` and `make test`.

GO ?= go
BIN := bin/mesh-agent
PREFIX ?= $(HOME)/.local
UNITS := $(HOME)/.config/systemd/user

.DEFAULT_GOAL := help
.PHONY: help build static demo test quick install man clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/mesh-agent; where there is a C compiler it can load PKCS#11 modules
	$(GO) build -trimpath -tags netgo,osusergo -o $(BIN) ./cmd/mesh-agent

static: ## build bin/mesh-agent, one static binary, without PKCS#11
	CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN) ./cmd/mesh-agent

demo: ## show it at work on real data (FILE=path encrypts a file of yours)
	@GO=$(GO) scripts/demo.sh $(if $(FILE),"$(FILE)")

test: ## install what the tests need, then run everything: style, tests with -race, fuzzing, benchmarks
	@GO=$(GO) scripts/test.sh

quick: ## the tests alone, without -race
	$(GO) test ./...

install: build ## install the binary, manual pages and completions in PREFIX, and the units of systemd's user manager
	install -D -m 0755 $(BIN) $(PREFIX)/bin/mesh-agent
	install -D -m 0644 -t $(PREFIX)/share/man/man1 docs/man/*.1
	install -d $(PREFIX)/share/bash-completion/completions $(PREFIX)/share/zsh/site-functions $(PREFIX)/share/fish/vendor_completions.d
	$(BIN) completion bash >$(PREFIX)/share/bash-completion/completions/mesh-agent
	$(BIN) completion zsh >$(PREFIX)/share/zsh/site-functions/_mesh-agent
	$(BIN) completion fish >$(PREFIX)/share/fish/vendor_completions.d/mesh-agent.fish
	install -D -m 0644 -t $(UNITS) systemd/*.service systemd/*.socket

man: ## write docs/man anew from the commands
	$(GO) test ./cmd/mesh-agent -run '^TestManPages$$' -update -count=1

clean: ## remove what was built
	rm -rf bin
