# make help lists the targets.

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:

# What is done is said in a word; make V=1 prints the commands instead.
MAKEFLAGS += --no-print-directory
Q := $(if $(filter 1,$(V)),,@)
say = $(if $(Q),@printf '  %-6s %s\n' $(1) $(2))

# From outside: CC, CFLAGS, LDFLAGS, PREFIX, DESTDIR. What the program needs
# is kept apart from them.
CC ?= cc
CFLAGS ?= -O2 -g
PREFIX ?= /usr/local
BUILD ?= .build/release
SSED ?= ssed

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.1)
WARNINGS := -Wall -Wextra -Wpedantic -Wshadow -Wconversion \
	-Wstrict-prototypes -Wmissing-prototypes
NEEDED := -std=c11 -D_GNU_SOURCE -I. -DVERSION='"$(VERSION)"' $(WARNINGS)
# _FORTIFY_SOURCE needs optimization, and some compilers set it themselves
HARDENING ?= -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 -fstack-protector-strong \
	-fPIE
HARDENING_LINK ?= -pie -Wl,-z,relro,-z,now
# PLAIN=1: the unit tests are of a libc for which there is no Criterion
ifeq ($(PLAIN),1)
NEEDED += -Itest/plain
else
CRITERION := -lcriterion
endif
COMPILE = $(CC) $(NEEDED) $(HARDENING) $(CFLAGS) $(CPPFLAGS) -MMD -MP
LINK = $(CC) $(HARDENING) $(CFLAGS) $(HARDENING_LINK) $(LDFLAGS)

CORE := sse ring http
UNIT_TESTS := $(patsubst %.c,%,$(wildcard test/test_*.c))
BLACK_BOX := $(wildcard test/black-box/test_*.c) test/black-box/harness.c \
	test/black-box/another_boot.c test/black-box/sign.c
OBJECTS := $(CORE:%=$(BUILD)/%.o)
UNIT_OBJECTS := $(UNIT_TESTS:%=$(BUILD)/%.o)
TEST_OBJECTS := $(UNIT_OBJECTS) $(BLACK_BOX:%.c=$(BUILD)/%.o) \
	$(BUILD)/test/exploit/exploit.o
PAGES := $(wildcard static/*)
SOURCES := $(wildcard *.c *.h test/*.c test/*.h test/*/*.c test/*/*.h \
	test/*/*/*.h bench/*.c)

all: $(SSED) ## build ./ssed

$(SSED): $(OBJECTS)
	$(call say,LINK,$@)
	$(Q)$(LINK) -o $@ $^

# The version is compiled into one object, which is made again when it changes.
$(BUILD)/sse.o: $(BUILD)/version
$(BUILD)/version: FORCE
	@mkdir -p $(@D)
	@echo '$(VERSION)' | cmp -s - $@ || echo '$(VERSION)' > $@

$(BUILD)/http.o: $(PAGES)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(COMPILE) -c -o $@ $<

# Another build, in a folder that is named as the target. The + is for -j: make
# does not see $(MAKE) in a variable.
OTHER = +$(Q)$(MAKE) BUILD=.build/$@ SSED=.build/$@/ssed

run: all ## build it and start it on http://127.0.0.1:3000/
	./$(SSED)

debug: ## build .build/debug/ssed without optimization
	$(OTHER) all HARDENING= HARDENING_LINK= CFLAGS='-O0 -g3'

# ------------------------------------------------------------------ tests

AS_ROOT = $(if $(filter 0,$(shell id -u)),,sudo)

# Installs packages with apt and says so.
apt_install = echo 'installing $(1) with apt-get' && \
	$(AS_ROOT) apt-get update -q && \
	$(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -qy $(1)

# Installs the packages $(2) where one of the commands or files $(1) is missing.
need = for needed in $(1); do \
		{ command -v $$needed || test -e $$needed; } >/dev/null || missing=1; \
	done; \
	test -z "$$missing" || { $(call apt_install,$(2)); }

deps: ## install what the tests need (Criterion), with apt
	@$(call need,/usr/include/criterion/criterion.h,libcriterion-dev)

# make -j deps test: first the one, then the other
ifneq ($(filter deps musl aarch64,$(MAKECMDGOALS)),)
$(TEST_OBJECTS): | deps
endif

UNIT = $(UNIT_OBJECTS:.o=)
# the black-box tests, which can be of another libc than the server
TESTER ?= $(BUILD)/test/black_box

# what each unit test links with, besides its own object
$(BUILD)/test/test_ring $(BUILD)/test/test_order: $(BUILD)/ring.o
$(BUILD)/test/test_history $(BUILD)/test/test_event_stream: $(BUILD)/ring.o
$(BUILD)/test/test_http $(BUILD)/test/test_redis: $(BUILD)/http.o
$(BUILD)/test/test_sse $(BUILD)/test/test_filter: $(BUILD)/ring.o $(BUILD)/http.o
$(UNIT): %: %.o
$(BUILD)/test/black_box: $(BLACK_BOX:%.c=$(BUILD)/%.o) $(BUILD)/ring.o
$(BUILD)/test/black_box: $(BUILD)/http.o
$(UNIT) $(BUILD)/test/black_box:
	$(call say,LINK,$@)
	$(Q)$(LINK) -o $@ $^ $(CRITERION)

# loaded into the server before its libc
PRELOADED = $(SHORT_IO) $(FAIL_SYNC) $(HOLD) $(CUT_FILE)
SHORT_IO = $(abspath $(BUILD)/test/short_io.so)
FAIL_SYNC = $(abspath $(BUILD)/test/fail_sync.so)
HOLD = $(abspath $(BUILD)/test/hold.so)
CUT_FILE = $(abspath $(BUILD)/test/cut_file.so)
$(abspath $(BUILD))/test/%.so: test/black-box/%.c
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(NEEDED) -O2 -fPIC -shared -o $@ $< -ldl

# the server with a hole, for the tests of what is left to somebody inside it
EXPLOITABLE = $(abspath $(BUILD)/test/exploitable)
$(EXPLOITABLE): $(OBJECTS) $(BUILD)/test/exploit/exploit.o
	$(call say,LINK,$@)
	$(Q)$(LINK) -Wl,--wrap=read -o $@ $^

export FAIL_SYNC HOLD CUT_FILE EXPLOITABLE

# Runs programs of tests with a command, also those behind one that fails.
run_tests = for test in $(1); do \
		echo "$$test"; \
		SSED=./$(SSED) $(2) $$test $(TEST_OPTIONS) || failed=1; \
	done

test: $(SSED) $(UNIT) $(TESTER) $(PRELOADED) $(EXPLOITABLE) ## run every test
	@$(call run_tests,$(UNIT),$(EMULATOR)); \
	$(call run_tests,$(TESTER)); \
	echo "$(TESTER), with short reads and writes"; \
	SSED=./$(SSED) SSED_PRELOAD='$(SHORT_IO)' $(TESTER) $(TEST_OPTIONS) || \
		failed=1; \
	test -z "$$failed"

unit: $(UNIT) ## run the unit tests
	@$(call run_tests,$(UNIT),$(EMULATOR)); test -z "$$failed"

# make -j unit black-box: one after the other, for some tests have deadlines
black-box: $(SSED) $(TESTER) $(PRELOADED) $(EXPLOITABLE) | \
	$(filter unit,$(MAKECMDGOALS))
black-box: ## run the black-box tests
	@$(call run_tests,$(TESTER)); test -z "$$failed"

# A ring too large is a case; the library for short reads comes first.
ASAN := detect_leaks=1:abort_on_error=1:allocator_may_return_null=1:$\
	verify_asan_link_order=0

# ASan knows what malloc(3) gave, and not pages.
asan: export ASAN_OPTIONS := $(ASAN)
asan: export UBSAN_OPTIONS := halt_on_error=1:print_stacktrace=1
asan: export TEST_SLOWNESS := 3
# a leak is looked for with ptrace(2)
asan: export SSED_OPTIONS := --sandbox off
asan: ## build with ASan and UBSan and run every test on it
	$(OTHER) test HARDENING= HARDENING_LINK= \
		CPPFLAGS='$(CPPFLAGS) -DPAGES_FROM=SIZE_MAX' CFLAGS='-O1 -g \
		-fno-omit-frame-pointer \
		-fsanitize=address,undefined -fno-sanitize-recover=all'

FUZZ_SECONDS ?= 60
FUZZ = echo '$(1)' && clang $(NEEDED) -g -O1 \
	-fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all \
	-o .build/fuzz/$(1) test/fuzz/$(1).c $(2) && \
	.build/fuzz/$(1) -max_total_time=$(FUZZ_SECONDS) -max_len=20000 \
	-artifact_prefix=.build/fuzz/ $(3) .build/fuzz/$(1)-corpus

fuzz: check-deps ## fuzz parsers, ring and file for FUZZ_SECONDS (60) each
	@mkdir -p .build/fuzz/fuzz_request-corpus .build/fuzz/fuzz_ring-corpus \
		.build/fuzz/fuzz_event_stream-corpus .build/fuzz/fuzz_history-corpus \
		.build/fuzz/fuzz_redis-corpus .build/fuzz/fuzz_token-corpus
	$(Q)$(call FUZZ,fuzz_request,http.c,-dict=test/fuzz/request.dict)
	$(Q)$(call FUZZ,fuzz_ring,ring.c)
	$(Q)$(call FUZZ,fuzz_history,ring.c,-len_control=0)
	$(Q)$(call FUZZ,fuzz_event_stream,ring.c,-dict=test/fuzz/event_stream.dict)
	$(Q)$(call FUZZ,fuzz_redis,,-dict=test/fuzz/redis.dict)
	$(Q)$(call FUZZ,fuzz_token,,-dict=test/fuzz/token.dict)

VALGRIND := valgrind -q --leak-check=full --error-exitcode=99

# not the tests of --root: Debian's valgrind does not know openat2(2)
valgrind: $(SSED) $(BUILD)/test/black_box $(PRELOADED)
valgrind: ## run the server under valgrind
	@$(call need,valgrind,valgrind)
	$(Q)SSED=./$(SSED) SSED_UNDER='$(VALGRIND)' TEST_SLOWNESS=10 \
		SSED_OPTIONS='--sandbox off' CRASH_ROUNDS=8 $(BUILD)/test/black_box --jobs 2 \
		--filter '!(folder)/*'

readme: $(SSED) ## run the commands of README.md
	@$(call need,curl node ping python3 redis-server redis-cli haproxy openssl $\
		jq kcat psql /usr/lib/python3/dist-packages/redis $\
		/usr/share/nodejs/redis,$\
		curl iputils-ping nodejs python3 redis-server redis-tools haproxy $\
		openssl jq kcat postgresql python3-redis node-redis)
	@$(call need,npm /usr/lib/python3/dist-packages/jwt,npm python3-jwt)
	@$(call need,promtool,prometheus)
	$(Q)$(JOSE)
	$(Q)test/readme.sh ./$(SSED)

# browser TESTS='clock chat': those with one of these in their names
browser: $(SSED) ## drive the pages in Chromium (TESTS=), with screenshots
	@$(call need,chromium chromedriver $\
		/usr/lib/python3/dist-packages/selenium $\
		/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc,$\
		chromium chromium-driver fonts-noto-cjk python3-selenium)
	$(Q)test/browser/run.py ./$(SSED) $(TESTS)

# nodes TESTS='killed trimmed': those with one of these in their names; again
# and again for NODES_MINUTES=; NODES_SEED= repeats a run
nodes: $(SSED) ## nodes that share a log, and what can fail there (4 minutes)
	@$(call need,/usr/bin/redis-server /usr/sbin/haproxy python3,$\
		redis-server haproxy python3)
	$(Q)NODES_MINUTES=$(NODES_MINUTES) NODES_SEED=$(NODES_SEED) \
		test/nodes/run.py ./$(SSED) $(TESTS)

# jose, of npm
JOSE = test -d .build/tokens/node_modules/jose || \
	npm install --silent --prefix .build/tokens jose

tokens: $(SSED) ## signed tokens of PyJWT and jose, and ours in them
	@$(call need,node npm python3 /usr/lib/python3/dist-packages/jwt,$\
		nodejs npm python3 python3-jwt)
	$(Q)$(JOSE)
	$(Q)test/tokens/run.py ./$(SSED) .build/tokens $(TESTS)

SOAK_SECONDS ?= 60

soak: $(SSED) $(BUILD)/test/black_box ## publish and subscribe at random for a minute
	$(Q)SSED=./$(SSED) SOAK_SECONDS=$(SOAK_SECONDS) \
		$(BUILD)/test/black_box --filter 'soak/*'

CRASH_ROUNDS ?= 1500

crash: $(SSED) $(BUILD)/test/black_box ## kill the server under load for two minutes
	$(Q)SSED=./$(SSED) CRASH_ROUNDS=$(CRASH_ROUNDS) \
		$(BUILD)/test/black_box --filter 'restart/crash_loop'

# ------------------------------------- other builds, compilers, processors

COVERED := $(CORE:%=$(CURDIR)/%.c)
LCOV := lcov --quiet --rc lcov_branch_coverage=1
TRACE := .build/coverage/trace

# what ran is written to files at the end
coverage: export SSED_OPTIONS := --sandbox off
coverage: deps ## run every test and show how much of each file it ran
	@$(call need,lcov,lcov)
	@mkdir -p .build/coverage
	@find .build/coverage -name '*.gcda' -delete
	$(OTHER) test CC=gcc HARDENING= HARDENING_LINK= CFLAGS='-O0 -g --coverage'
	@$(LCOV) --capture --directory .build/coverage --output-file $(TRACE) \
		2>$(TRACE).log || { cat $(TRACE).log; exit 1; }
	@$(LCOV) --extract $(TRACE) $(COVERED) --output-file $(TRACE)
	@genhtml --quiet --branch-coverage --output-directory \
		.build/coverage/html $(TRACE)
	@$(LCOV) --list $(TRACE)
	@echo 'line by line: .build/coverage/html/index.html'

static: ## build .build/static/ssed, which needs no library
	@$(call need,musl-gcc,musl-tools)
	$(OTHER) all CC=musl-gcc HARDENING_LINK='-static -Wl,-z,relro,-z,now'
	@! readelf -dlW .build/static/ssed | grep -E 'NEEDED|INTERP'
	@.build/static/ssed --version

# Criterion is of the native libc, and with it are the black-box tests.
musl: deps $(BUILD)/test/black_box ## build with musl and test that
	@$(call need,musl-gcc,musl-tools)
	$(OTHER) unit black-box CC=musl-gcc CFLAGS='$(CFLAGS) -Werror' PLAIN=1 \
		TESTER=$(BUILD)/test/black_box

clang: deps ## build with clang and test that
	@$(call need,clang,clang)
	$(OTHER) unit black-box CC=clang

# The server and the unit tests run in qemu. It knows no openat2(2), and has no
# room for a file of a terabyte; a test starts a server without SSED_UNDER.
AARCH64 := CC=aarch64-linux-gnu-gcc CFLAGS='$(CFLAGS) -Werror' PLAIN=1
QEMU := qemu-aarch64-static -L /usr/aarch64-linux-gnu

aarch64: export SSED_UNDER := $(QEMU)
aarch64: export TEST_SLOWNESS := 5
aarch64: export CRASH_ROUNDS := 20
aarch64: deps $(BUILD)/test/black_box ## build for aarch64 and test that in qemu
	@$(call need,aarch64-linux-gnu-gcc qemu-aarch64-static,$\
		gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static)
	$(OTHER) unit $(AARCH64) EMULATOR='$(QEMU)' \
		TEST_OPTIONS='folder/ history/recovery_is_bounded_by'
	$(OTHER) black-box $(AARCH64) TESTER=$(BUILD)/test/black_box \
		TEST_OPTIONS="--filter '!(folder/*|restart/a_closed_stderr*)'"

# -D flags that make sizes small, so that their limits are met often
TINY := -DSEND_BUDGET=1024 -DIOV_ROOM=3 -DIN_FIRST=64 -DOUT_SIZE=1536 \
	-DSTEP_EVENTS=1 -DSPARE_EXCHANGES=1 -DACCEPTS_MAX=1 -DQUANTUM_SENDS=2 \
	-DQUANTUM_BYTES=2048 -DEVENTS_MAX=2 -DCONTENT_FIRST=16

tiny: deps $(BUILD)/test/black_box ## run the black-box tests with small sizes
	@mkdir -p .build/tiny
	@echo '$(TINY)' | cmp -s - .build/tiny/flags || \
		{ rm -rf .build/tiny/* && echo '$(TINY)' >.build/tiny/flags; }
	$(OTHER) black-box CPPFLAGS='$(CPPFLAGS) $(TINY)' TESTER=$(BUILD)/test/black_box

# ------------------------------------------------------------------- bench

BENCH := abuse fan floor parse scale
WRAP := -Wl,--wrap=writev -Wl,--wrap=send -Wl,--wrap=epoll_ctl

$(BENCH:%=$(BUILD)/bench/%): $(BUILD)/bench/%: $(BUILD)/bench/%.o
	$(call say,LINK,$@)
	$(Q)$(LINK) -o $@ $^
$(BUILD)/bench/scale: $(BUILD)/ring.o
$(BUILD)/bench/parse: $(BUILD)/ring.o $(BUILD)/http.o
$(BUILD)/bench/scale: HARDENING_LINK += $(WRAP)

# PICOHTTPPARSER=FOLDER: its source, to be measured beside ours
ifdef PICOHTTPPARSER
$(BUILD)/bench/parse.o: CPPFLAGS += -DPICOHTTPPARSER -I$(PICOHTTPPARSER)
$(BUILD)/bench/parse: $(BUILD)/bench/picohttpparser.o
$(BUILD)/bench/picohttpparser.o: $(PICOHTTPPARSER)/picohttpparser.c
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(CFLAGS) -c -o $@ $<
endif

bench-tools: $(BENCH:%=$(BUILD)/bench/%) ## build the load generators and the floor

COMPARE = SSED=./$(SSED) TOOLS=$(BUILD)/bench bench/compare

bench: $(SSED) bench-tools ## measure against the floor, with bounds (5 minutes)
	$(Q)$(COMPARE)

bench-full: $(SSED) bench-tools ## all of it, the peers and their picture
	@$(call need,wrk gnuplot /usr/lib/nginx/modules/ngx_nchan_module.so,$\
		nginx libnginx-mod-nchan wrk gnuplot-nox)
	@$(call need,npm,nodejs npm)
	@$(call need,redis-server redis-benchmark redis-cli,$\
		redis-server redis-tools)
	$(Q)test -d .build/peers/node_modules/express || \
		npm install --silent --prefix .build/peers express
	$(Q)RESULTS=.build/bench-results PICTURE=bench/results.svg $(COMPARE) \
		broadcast rate50 pace saturation replay memory awake growth pages \
		scale parse nodes sandbox peers

ABUSE_SECONDS ?= 5

abuse: $(SSED) bench-tools ## what others notice while some misbehave (2 minutes)
	$(Q)$(BUILD)/bench/abuse --ssed ./$(SSED) --seconds $(ABUSE_SECONDS)

bench-million: $(SSED) bench-tools ## hold as many subscribers as fit here
	$(Q)$(COMPARE) million

# ------------------------------------------------------------------ checks

# left out: what warns of two parameters of one type, of casts that epoll and
# iovecs need, of bytes without a NUL (slices have none), and what asks for
# Annex K's functions, which libc does not have
TIDY := clang-analyzer-*,bugprone-*,performance-*,portability-*,misc-*,$\
	-bugprone-easily-swappable-parameters,-performance-no-int-to-ptr,$\
	-bugprone-not-null-terminated-result,$\
	-clang-analyzer-security.insecureAPI.*
LINT := -std=c11 -D_GNU_SOURCE -I. -DVERSION=\"check\"

# Members that the kernel alone reads are unused to cppcheck.
check: ## warnings as errors (gcc, clang), clang-tidy, cppcheck, format
	$(Q)$(MAKE) check-deps
	$(Q)$(MAKE) check-compiler CC=gcc BUILD=.build/check-gcc
	$(Q)$(MAKE) check-compiler CC=clang BUILD=.build/check-clang
	$(Q)$(MAKE) check-unit PLAIN=1 CC=clang BUILD=.build/check-plain
	$(call say,FORMAT,'all sources')
	$(Q)clang-format --dry-run -Werror $(SOURCES)
	$(call say,TIDY,'all sources')
	$(Q)printf '%s\n' $(filter %.c test/plain/%,$(SOURCES)) | \
		xargs -P "$$(nproc)" -I{} sh -c \
		'out=$$(clang-tidy --quiet --warnings-as-errors="*" \
		--checks="$(TIDY)" {} -- $(LINT) 2>&1) || { echo "$$out"; exit 1; }'
	$(call say,CHECK,'$(wildcard *.c)')
	$(Q)cppcheck --quiet --std=c11 --error-exitcode=1 --inline-suppr \
		--enable=warning,performance,portability,style \
		--suppress=missingIncludeSystem --suppress=unusedStructMember \
		-D_GNU_SOURCE -DVERSION='"check"' $(wildcard *.c)

check-compiler check-unit: CFLAGS += -Werror
check-compiler: $(OBJECTS) $(TEST_OBJECTS) $(BENCH:%=$(BUILD)/bench/%.o)
check-unit: $(UNIT_OBJECTS)

CHECKERS := clang clang-tidy clang-format cppcheck

check-deps: deps
	@$(call need,$(CHECKERS),$(CHECKERS))

format: ## bring the sources into form
	$(Q)clang-format -i $(SOURCES)

# ----------------------------------------------------------------- install

install: all ## install to $(DESTDIR)$(PREFIX)/bin
	$(call say,COPY,$(DESTDIR)$(PREFIX)/bin/ssed)
	$(Q)install -D -m 755 $(SSED) $(DESTDIR)$(PREFIX)/bin/ssed

uninstall: ## remove what install put there
	$(call say,REMOVE,$(DESTDIR)$(PREFIX)/bin/ssed)
	$(Q)rm -f $(DESTDIR)$(PREFIX)/bin/ssed

clean: ## remove what was built
	$(call say,REMOVE,'.build ssed')
	$(Q)rm -rf .build ssed

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 16

-include $(OBJECTS:.o=.d) $(TEST_OBJECTS:.o=.d) \
	$(BENCH:%=$(BUILD)/bench/%.d)

.PHONY: aarch64 abuse all asan bench bench-full bench-million bench-tools \
	black-box browser check check-compiler check-deps check-unit clang clean \
	coverage crash debug deps format fuzz help install musl nodes readme run \
	soak static test tiny tokens uninstall unit valgrind FORCE
.SECONDARY:
