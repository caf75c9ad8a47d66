# shellcheck shell=bash disable=SC2034  # sourced by the other scripts, which use these variables
# Where things are and which tools build the kernel. Sets variables and changes nothing.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${VHOST_NET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vhost-net-rs}
# One build of a module at a time: kbuild writes to the kernel's folder too, which all checkouts share.
module_lock=$cache/modules.lock
# What the VM is, the kernel, and what is built for it, as Debian calls it. What is built for another machine than this has a folder
# of its own, seen from the checkout; the VM is told of it.
arch=${VM_ARCH:-amd64}
build=build
# What a VM with one of Debian's kernels sees its root and its console by, none of which these have built in.
vm_modules=(9p 9pnet_virtio virtio_console)
if [ "$arch" != amd64 ]; then
    vm_modules+=(virtio_mmio) # virtme-ng's devices are there
    # Of programs that run here by QEMU (scripts/emulate). Its usual processor signs each return address, which takes four fifths of the time.
    export QEMU_CPU=neoverse-n1
fi
flavour=${VM_KERNEL:-debian} # the kernel that people have
debian_root= # what the VM sees with Debian's own kernels, and nothing for ours
debian_tools_root= # where the compilers are, if that is not the same
case $arch-$flavour in
amd64-base | amd64-debug) ;;
amd64-debian | amd64-debian-rt | amd64-debian-cloud)
    debian_suite=trixie debian_series=7.3 debian_gcc=(gcc-14) debian_root=$cache/debian/13
    debian_package=${flavour#debian}-amd64
    debian_package=${debian_package#-} # the end of a package's name, as in linux-image-rt-amd64
    ;;
amd64-debian-7.2)
    # Until that suite has another series: forky follows it.
    debian_suite=sid debian_series=7.2 debian_gcc=(gcc-16) debian_root=$cache/debian/sid
    debian_package=amd64
    ;;
arm64-debian | arm64-debian-16k)
    debian_suite=trixie debian_series=7.3 debian_gcc=(gcc-14 gcc-14-aarch64-linux-gnu libc6-dev-arm64-cross) debian_root=$cache/debian/arm64${flavour#debian}
    debian_package=arm64${flavour#debian}
    debian_tools_root=$cache/debian/13
    build=build/arm64
    ;;
*-installed) # for the step `package` only: what is installed in the root VM_ROOT, with a module that DKMS built
    debian_root=${VM_ROOT:?}
    [ "$arch" = amd64 ] || build=build/$arch
    ;;
arm64-*)
    echo "VM_KERNEL is '$flavour'; with VM_ARCH=arm64 it can be debian or debian-16k" >&2
    exit 2
    ;;
amd64-*)
    echo "VM_KERNEL is '$flavour'; it can be debian, debian-rt, debian-cloud, debian-7.2, base or debug" >&2
    exit 2
    ;;
*)
    echo "VM_ARCH is '$arch'; it can be amd64 or arm64" >&2
    exit 2
    ;;
esac
: "${debian_tools_root:=$debian_root}"

linux=$cache/linux             # the kernel's source, one tree for all flavours
kdir=$cache/$build/$flavour    # the kernel's build folder, KDIR of the module
kimage=$kdir/arch/x86/boot/bzImage
kconfig=$kdir/.config # what the kernel was made of
kmodules=$kdir # where the kernel's own modules are, compressed or not
[ "$flavour" != installed ] || kdir=$debian_root.vm
if [ -n "$debian_root" ]; then
    release=$(cat "$kdir.release" 2>/dev/null || true)
    kmodules=$debian_root/usr/lib/modules/$release
    kimage=$kmodules/vmlinuz
    kconfig=$kmodules/config
    kmodules+=/kernel
fi
module_out=$root/$build/$flavour${VM_KUNIT:+-kunit} # the module's build folder

# virtme-ng, which boots the VMs.
virtme_version=1.42
virtme=$cache/tools/virtme-ng-$virtme_version

# The host's toolchain. A rustup that comes first in PATH has no rust-src and writes other metadata than
# the compiler that built the kernel, so every tool is named by its path.
host=$(. /etc/os-release && echo "${ID:-}-${VERSION_ID:-}")
case $host in
debian-13)
    llvm=19
    bindgen=/usr/bin/bindgen
    ;;
*)
    llvm=22
    bindgen=$cache/tools/bin/bindgen
    ;;
esac
toolchain=(
    "LLVM=-$llvm"
    RUSTC=/usr/bin/rustc
    RUSTDOC=/usr/bin/rustdoc
    RUSTFMT=/usr/bin/rustfmt
    HOSTRUSTC=/usr/bin/rustc
    CLIPPY_DRIVER=/usr/bin/clippy-driver
    "BINDGEN=$bindgen"
)
export LIBCLANG_PATH=/usr/lib/llvm-$llvm/lib
export PATH=/usr/bin:/bin:/usr/sbin:/sbin:$PATH

# These scripts start builds of their own, to which the variables of the `make` that called them do not belong.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES

fail() {
    echo "${0#"$root/"}: $*" >&2
    exit 1
}
