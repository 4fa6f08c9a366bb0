# Everything that one does with ringbouncer: run, test, bench, install.

CARGO ?= cargo
# What is built in besides: pam, ldap. `pam` needs Debian's libpam0g-dev.
FEATURES ?=
PREFIX ?= /usr/local
DESTDIR ?=
BINDIR = $(DESTDIR)$(PREFIX)/bin
CONFDIR = $(DESTDIR)$(PREFIX)/etc/ringbouncer
MANDIR = $(DESTDIR)$(PREFIX)/share/man
SHAREDIR = $(DESTDIR)$(PREFIX)/share/ringbouncer
UNITDIR = $(DESTDIR)$(PREFIX)/lib/systemd/system

.PHONY: all build run test bench install clean

all: build

build:
	$(CARGO) build --release --features "$(FEATURES)"

# A pooler on port 6432 in front of a throw-away PostgreSQL; Ctrl-C ends both.
# PGHOST and PGPORT name a PostgreSQL of your own.
run:
	@CARGO="$(CARGO)" bash etc/run.sh

# The test runner's own summary is the last thing printed.
test:
	@bash etc/need.sh postgresql slapd libpam0g-dev libpam-wrapper prometheus
	@$(CARGO) fmt --check
	@$(CARGO) check
	@$(CARGO) clippy --all-targets --all-features -- -D warnings
	@RUSTDOCFLAGS="-D warnings" $(CARGO) doc --quiet --no-deps --lib --all-features
	@if $(CARGO) nextest --version >/dev/null 2>&1; \
	then $(CARGO) test --quiet --doc --all-features && $(CARGO) nextest run --all-features; \
	else $(CARGO) test --no-fail-fast --all-features; \
	fi

# Ringbouncer beside other poolers and beside none.
bench:
	@bash etc/need.sh postgresql pgbouncer haproxy
	$(CARGO) bench --bench compare

install: build
	install -d "$(BINDIR)" "$(CONFDIR)" "$(UNITDIR)"
	install -m 755 target/release/ringbouncer "$(BINDIR)/ringbouncer"
	ln -sf ringbouncer "$(BINDIR)/pgbouncer"
	install -m 644 etc/ringbouncer.ini etc/all-settings.ini etc/userlist.txt "$(CONFDIR)"
	install -d "$(MANDIR)/man1" "$(MANDIR)/man5" "$(SHAREDIR)"
	install -m 644 etc/man/ringbouncer.1 "$(MANDIR)/man1"
	install -m 644 etc/man/ringbouncer.5 "$(MANDIR)/man5"
	install -m 755 etc/mkauth "$(SHAREDIR)"
	sed 's|/usr/local|$(PREFIX)|g' etc/ringbouncer.service > "$(UNITDIR)/ringbouncer.service"
	install -m 644 etc/ringbouncer.socket "$(UNITDIR)"

clean:
	$(CARGO) clean
