# SPDX-License-Identifier: GPL-2.0
ifneq ($(KERNELRELEASE),)
# ---- The kernel's half: read by kbuild, in tree and out of tree.

obj-$(CONFIG_VHOST_NET_RUST) += vhost_net.o
# A module may not have a member of its own name.
vhost_net-y := vhost_net_main.o

# The tracepoints, whose header is read again and again from a header of the kernel's.
vhost_net-$(CONFIG_TRACEPOINTS) += sys/vhost_net_events.o
CFLAGS_sys/vhost_net_events.o := -I$(src)/sys

# A kernel with KCOV is a fuzzer's, who is to see what the worker does. Blocks, and not edges as elsewhere: rustc makes two
# edges of a label that is used twice, as that of a jump label is. Each would get a block of its own, so that the jump goes to
# another place than its table says, which may not even be in its reach: the kernel can't patch it.
KCOV_INSTRUMENT_vhost_net_main.o := n
vhost_kcov_flags := $(subst coverage-level=3,coverage-level=2,$(RUSTFLAGS_KCOV))
rustflags-$(CONFIG_KCOV) += $(if $(findstring coverage-level=2,$(vhost_kcov_flags)),$(vhost_kcov_flags))

# Out of tree the kernel's configuration does not have the option.
rustflags-$(CONFIG_VHOST_NET_RUST_KUNIT_TEST) += --cfg CONFIG_VHOST_NET_RUST_KUNIT_TEST

# An older series, for what sys/compat.rs has for it.
rustflags-$(if $(filter 7.2,$(VERSION).$(PATCHLEVEL)),y) += --cfg linux_7_2

# Bindgen has a C compiler of its own, libclang, which does not know some of gcc's options. Which ones the kernel's own
# bindings leave out, and what the target is called, is said in the kernel's rust/Makefile.
vhost_bindgen_c_flags = $(filter-out $(CC_FLAGS_LTO) -Wp$(comma)%, $(c_flags))
ifndef CONFIG_CC_IS_CLANG
vhost_skip_c_flags := $(shell sed -n '/^bindgen_skip_c_flags :=/,/[^\\]$$/ { s/.*:=//; s/\\$$//; p }' $(srctree)/rust/Makefile)
vhost_bindgen_target := $(firstword $(shell sed -n 's/^BINDGEN_TARGET_$(SRCARCH)[[:space:]]*:=//p' $(srctree)/rust/Makefile))
vhost_bindgen_c_flags = $(filter-out $(CC_FLAGS_LTO) -Wp$(comma)% $(vhost_skip_c_flags), $(c_flags)) \
	--target=$(vhost_bindgen_target)
endif

# Bindings for what the kernel crate does not bind, and for the helpers.
targets += sys/bindings_generated.rs
export VHOST_NET_BINDINGS := $(abspath $(obj)/sys/bindings_generated.rs)

quiet_cmd_vhost_bindgen = BINDGEN $@
      cmd_vhost_bindgen = mkdir -p $(@D); \
	$(BINDGEN) $< $(shell grep -v '^\#' $(src)/sys/bindgen_parameters) \
		--rust-target 1.85 --use-core --with-derive-default --ctypes-prefix ffi \
		--no-layout-tests --no-doc-comments --no-debug '.*' \
		--enable-function-attribute-detection -o $@ -- \
		$(vhost_bindgen_c_flags) -Wp,-MMD,$(depfile) \
		-fno-builtin -D__BINDGEN__ -DMODULE -w; \
	sed -Ei -e 's/pub const RUST_CONST_HELPER_([a-zA-Z0-9_]*)/pub const \1/' \
		-e 's/pub fn rust_helper_([a-zA-Z0-9_]*)/\#[link_name = "rust_helper_\1"]\n    pub fn \1/' $@

$(obj)/sys/bindings_generated.rs: $(src)/sys/helpers.c $(src)/sys/bindgen_parameters FORCE
	$(call if_changed_dep,vhost_bindgen)

$(obj)/vhost_net_main.o: $(obj)/sys/bindings_generated.rs

ifdef CONFIG_RUST_INLINE_HELPERS
# The helpers become part of the Rust object, as those of the kernel crate do.
targets += sys/helpers.bc

quiet_cmd_vhost_helpers = HELPER  $@
      cmd_vhost_helpers = \
	$(CC) $(c_flags) -Wno-missing-prototypes -Wno-missing-declarations -DVHOST_INLINE_HELPERS \
		-c -g0 $< -emit-llvm -o $@

$(obj)/sys/helpers.bc: private part-of-$(if $(filter y,$(CONFIG_VHOST_NET_RUST)),builtin,module) := y
$(obj)/sys/helpers.bc: $(src)/sys/helpers.c FORCE
	$(call if_changed_dep,vhost_helpers)

$(obj)/vhost_net_main.o: $(obj)/sys/helpers.bc
$(obj)/vhost_net_main.o: private CC_FLAGS_RUST_INLINE_HELPERS += \
	-Xclang -mlink-builtin-bitcode -Xclang $(obj)/sys/helpers.bc
else
vhost_net-y += sys/helpers.o
CFLAGS_sys/helpers.o += -Wno-missing-prototypes -Wno-missing-declarations
endif

clean-files += sys/bindings_generated.rs sys/helpers.bc

# ---- End of the kernel's half.
else
# The user's half: `make help` lists the commands.

# Not given, it is Debian's own, the kernel that people have.
KERNEL := $(or $(VM_KERNEL),debian)
# What is for another machine than this (VM_ARCH=arm64) is kept apart.
BUILD := $(if $(filter-out amd64,$(VM_ARCH)),$(VM_ARCH)/)$(KERNEL)

# KDIR is the build folder of the kernel to build for. Those that `make kernel` made come with their toolchain; for another
# kernel say it yourself, as in KDIR=... TOOLCHAIN='LLVM=1'.
ifneq ($(origin KDIR),undefined)
BUILD := kdir
else
# Not every make gives $(shell) the variables that it exports.
KDIR = $(shell VM_ARCH=$(VM_ARCH) VM_KERNEL=$(KERNEL) scripts/kernel --print)
TOOLCHAIN ?= $(shell VM_ARCH=$(VM_ARCH) VM_KERNEL=$(KERNEL) scripts/toolchain)
HAS_KERNEL = VM_ARCH=$(VM_ARCH) VM_KERNEL=$(KERNEL) scripts/kernel --print >/dev/null
# For Debian's kernels its own compilers are used, where they are installed.
RUN := $(if $(filter debian%,$(KERNEL)),VM_ARCH=$(VM_ARCH) VM_KERNEL=$(KERNEL) scripts/in-debian)
endif
# VM_KUNIT=1: the module with its KUnit suites, in a folder of its own.
KUNIT := $(if $(VM_KUNIT),CONFIG_VHOST_NET_RUST_KUNIT_TEST=y)
OUT := $(CURDIR)/build/$(BUILD)$(if $(VM_KUNIT),-kunit)
# The one that a user without wishes builds is put where he finds it.
USUAL := $(filter $(addprefix $(CURDIR)/build/,debian kdir),$(OUT))

.PHONY: modules
modules: has-kernel
	$(RUN) $(MAKE) -C $(KDIR) M=$(CURDIR) MO=$(OUT) CONFIG_VHOST_NET_RUST=m $(KUNIT) $(TOOLCHAIN) modules
	@$(if $(USUAL),cp $(OUT)/vhost_net.ko vhost_net.ko)
	@echo "The module is $(if $(USUAL),vhost_net.ko,$(OUT)/vhost_net.ko)"

# By itself, for what a recipe asks the scripts for is asked before its first line runs.
.PHONY: has-kernel
has-kernel:
	@$(HAS_KERNEL)

.PHONY: kernel
kernel:
	@NEED_CARGO=1 scripts/kernel

.PHONY: print-kdir
print-kdir:
	@scripts/kernel --print

# The command reaches the script unexpanded, or make would take each $ in it for its own.
.PHONY: vm
vm: export VM_CMD := $(value CMD)
vm:
	@tests/vm/run

.PHONY: demo demo-compare
demo:
	@tests/demo/run
demo-compare:
	@tests/demo/compare

.PHONY: check
check:
	@scripts/check $(STEPS)

.PHONY: fuzz
fuzz:
	@scripts/check fuzz

# Bugs put in on purpose: WHAT='planted WORD' or WHAT='code FILE...' is only some of them.
.PHONY: mutants
mutants:
	@tests/mutants/run $(WHAT)

.PHONY: bench bench-quick bench-plot
bench:
	@tests/bench/run
bench-quick:
	@tests/bench/run --quick
bench-plot:
	@tests/bench/run --plot

# The package for Debian: the sources, which DKMS builds where it is installed.
.PHONY: deb
deb:
	@scripts/deb

# The same without a package, for one kernel: RELEASE is as `uname -r` prints it.
RELEASE ?= $(shell uname -r)
.PHONY: install uninstall
install:
	@dkms/install '$(RELEASE)'
uninstall:
	@dkms/install --remove '$(RELEASE)'

# vhost-net-top, built by cargo, which fetches its crates; three minutes the first time.
.PHONY: top install-top
top:
	@scripts/top
PREFIX ?= /usr/local
install-top: top
	install -D build/vhost-net-top/vhost-net-top '$(DESTDIR)$(PREFIX)/sbin/vhost-net-top'
	install -D -m 644 tools/vhost-net-top/vhost-net-top.8 '$(DESTDIR)$(PREFIX)/share/man/man8/vhost-net-top.8'

.PHONY: clean
clean:
	rm -rf build vhost_net.ko tests/*/target tools/*/target

.PHONY: help
help:
	@cat scripts/help.txt

endif
