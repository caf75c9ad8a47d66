// SPDX-License-Identifier: GPL-2.0

//! `/dev/vhost-net`: what its owner can do with it, and the features that it offers.

#![forbid(unsafe_code)]

use super::{
    attach::set_backend,
    header,
    net::Device, //
};
use crate::{
    features::Features,
    sys::{
        compat::EOPNOTSUPP,
        miscdev::MiscDevice,
        uaccess::CurrentMm, //
    },
    uapi::{
        self,
        Arg, //
    },
    vhost::FeaturesArg, //
};
use kernel::{
    fs::File,
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    prelude::*,
    seq_file::SeqFile,
    sync::{
        poll::PollTable,
        Arc,
        ArcBorrow, //
    }, //
};

/// The features that the device offers.
const FEATURES: Features = Features::of(&[
    Features::NOTIFY_ON_EMPTY,
    Features::INDIRECT_DESC,
    Features::EVENT_IDX,
    Features::LOG_ALL,
    Features::ANY_LAYOUT,
    Features::VERSION_1,
    Features::ACCESS_PLATFORM,
    Features::VIRTIO_NET_HDR,
    Features::MRG_RXBUF,
    Features::RING_RESET,
    Features::RING_PACKED,
    Features::IN_ORDER,
    Features::GUEST_UDP_TUNNEL_GSO,
    Features::HOST_UDP_TUNNEL_GSO,
]);

/// The features that the device offers to its owner.
const BACKEND_FEATURES: u64 = uapi::BACKEND_F_IOTLB_MSG_V2;

/// Sets the features that the guest accepted.
fn set_features(device: &Device, mm: CurrentMm<'_>, features: Features) -> Result {
    if !features.is_subset_of(&FEATURES) {
        return Err(EOPNOTSUPP);
    }
    // There are no packed rings of legacy devices.
    if features.has(Features::RING_PACKED) && !features.has(Features::VERSION_1) {
        return Err(EOPNOTSUPP);
    }
    let any = |bits: [u32; 2]| bits.iter().any(|&bit| features.has(bit));
    let len = if any([
        Features::HOST_UDP_TUNNEL_GSO,
        Features::GUEST_UDP_TUNNEL_GSO,
    ]) {
        header::TUNNEL_LEN
    } else if any([Features::MRG_RXBUF, Features::VERSION_1]) {
        header::MRG_LEN
    } else {
        header::LEN
    };
    let own = features.has(Features::VIRTIO_NET_HDR);
    device.set_features(mm, features, |queue| {
        queue.state.own_header = if own { len } else { 0 };
        queue.state.backend_header = if own { 0 } else { len };
    })
}

#[vtable]
impl MiscDevice for Device {
    const NAME: &'static CStr = c"vhost-net";
    const MINOR: u32 = 238;

    fn open() -> Result<Arc<Self>> {
        Device::new()
    }

    fn release(this: Arc<Self>) {
        Device::release(&this);
    }

    fn ioctl(this: ArcBorrow<'_, Self>, mm: CurrentMm<'_>, cmd: u32, arg: usize) -> Result<isize> {
        let arg = Arg::new(arg);
        match cmd {
            uapi::NET_SET_BACKEND => {
                let file: uapi::VringFile = arg.read()?;
                set_backend(&this, mm, file.index as usize, file.fd)?;
            }
            uapi::GET_FEATURES => {
                let [low, ..] = FEATURES.words();
                arg.write(&low)?;
            }
            uapi::SET_FEATURES => {
                set_features(&this, mm, Features::from_words([arg.read()?, 0]))?;
            }
            uapi::GET_FEATURES_ARRAY => FeaturesArg::new(mm, arg)?.write(FEATURES)?,
            uapi::SET_FEATURES_ARRAY => {
                set_features(&this, mm, FeaturesArg::new(mm, arg)?.read()?)?
            }
            uapi::GET_BACKEND_FEATURES => arg.write(&BACKEND_FEATURES)?,
            uapi::SET_BACKEND_FEATURES => {
                let features: u64 = arg.read()?;
                if features & !BACKEND_FEATURES != 0 {
                    return Err(EOPNOTSUPP);
                }
                this.set_backend_features(features);
            }
            uapi::SET_OWNER => {
                let mut state = this.lock();
                Device::set_owner(this, &mut state)?;
            }
            uapi::NEW_WORKER
            | uapi::FREE_WORKER
            | uapi::ATTACH_VRING_WORKER
            | uapi::GET_VRING_WORKER => Device::worker_ioctl(this, cmd, arg)?,
            uapi::RESET_OWNER => this.reset_owner()?,
            _ => Device::ioctl(&this, mm, cmd, arg)?,
        }
        Ok(0)
    }

    fn read(this: ArcBorrow<'_, Self>, to: &mut IovIterDest<'_>, nonblock: bool) -> Result<usize> {
        Device::read(&this, to, nonblock)
    }

    fn write(
        this: ArcBorrow<'_, Self>,
        mm: CurrentMm<'_>,
        from: &mut IovIterSource<'_>,
    ) -> Result<usize> {
        Device::write(&this, mm, from)
    }

    fn poll(this: ArcBorrow<'_, Self>, file: &File, table: PollTable<'_>) -> u32 {
        Device::poll(&this, file, table)
    }

    fn show_fdinfo(this: ArcBorrow<'_, Self>, m: &SeqFile) {
        Device::show_fdinfo(&this, m);
    }
}
