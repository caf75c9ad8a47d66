# SPDX-License-Identifier: GPL-2.0
ifneq ($(KERNELRELEASE),)
# ---- The kernel's half: read by kbuild, in tree and out of tree.

obj-$(CONFIG_VHOST_NET_RUST) += vhost_net.o
vhost_net-y := vhost_net_main.o

# ---- End of the kernel's half.
else
# The user's half: `make help` lists the commands.

VM_KERNEL ?= base
export VM_KERNEL

# KDIR is the build folder of the kernel to build for. The toolchain is the one that built our own kernel; for another
# kernel say it yourself, as in KDIR=... TOOLCHAIN='LLVM=1'.
ifeq ($(origin KDIR),undefined)
KDIR = $(shell scripts/kernel --print)
TOOLCHAIN ?= $(shell scripts/toolchain)
endif
OUT := $(CURDIR)/build/$(VM_KERNEL)

.PHONY: modules
modules:
	@[ -n "$(KDIR)" ] || exit 1
	$(MAKE) -C $(KDIR) M=$(CURDIR) MO=$(OUT) CONFIG_VHOST_NET_RUST=m $(TOOLCHAIN) modules
	@[ $(VM_KERNEL) != base ] || cp $(OUT)/vhost_net.ko vhost_net.ko
	@echo "The module is $(if $(filter base,$(VM_KERNEL)),vhost_net.ko,$(OUT)/vhost_net.ko)"

.PHONY: kernel
kernel:
	@scripts/kernel

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

.PHONY: clean
clean:
	rm -rf build vhost_net.ko

.PHONY: help
help:
	@cat scripts/help.txt

endif
