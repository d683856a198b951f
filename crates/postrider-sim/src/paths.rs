//! Paths that go dead without a word, as a carrier's address translation does it, and devices that sleep.
//!
//! On a dead path everything vanishes, both ways, and nobody is told. When it is back, its old connections are not: the first
//! thing that the device sends on one is answered by a reset. A device that sleeps reads nothing, sends nothing and looks at no
//! clock; what came meanwhile it finds when it wakes.

use crate::ledger::About;
use crate::world::{Happening, World};

/// How long a device waits for a connection on a dead path.
const DIAL_MS: u64 = 5_000;

impl World {
    pub fn paths_begin(&mut self) {
        let Some(paths) = self.plan.paths.clone() else { return };
        for device in 0..self.devices.len() {
            let wait = self.random.between(1, paths.trouble_every_ms * 2);
            self.after(wait, Happening::PathActs { device });
        }
    }

    pub fn path_acts(&mut self, device: usize) {
        let Some(paths) = self.plan.paths.clone().filter(|_| !self.calm) else { return };
        let wait = self.random.between(1, paths.trouble_every_ms * 2);
        self.after(wait, Happening::PathActs { device });
        // Mostly for a short while.
        let part = if self.random.permille(200) { 1 } else { 16 };
        if self.random.permille(300) {
            let ms = self.random.between(1, paths.sleep_ms_max / part);
            self.device_sleeps(device, ms);
        } else {
            let ms = self.random.between(1, paths.dead_ms_max / part);
            self.path_dies(device, ms);
        }
    }

    fn path_dies(&mut self, device: usize, ms: u64) {
        self.note(
            About { push: None, device: Some(device) },
            format!("network: the path of {device} is dead for {ms} ms"),
        );
        let signed_in = self.devices[device].is_signed_in();
        let d = &mut self.devices[device];
        d.dead_until = d.dead_until.max(self.now + ms);
        let Some(link) = d.link else { return };
        self.kill_link(link);
        if !signed_in {
            // It waits for an answer, and says nothing more by itself.
            self.after(ms + DIAL_MS, Happening::DeviceSees { link });
        }
    }

    fn kill_link(&mut self, link: u64) {
        if let Some(link) = self.links.get_mut(&link) {
            link.is_dead = true;
        }
    }

    /// Dials on a dead path: nobody answers.
    pub fn path_is_dead(&mut self, device: usize, link: u64) -> bool {
        let is_dead = self.now < self.devices[device].dead_until;
        if is_dead {
            self.kill_link(link);
            let wait = self.random.between(1_000, DIAL_MS);
            self.after(wait, Happening::DeviceSees { link });
        }
        is_dead
    }

    /// What a device writes on a dead connection: is tried again until the path is back, and then answered by a reset.
    pub fn write_to_dead(&mut self, device: usize, link: u64) {
        let latency = self.latency();
        let returns = self.devices[device].dead_until.max(self.now);
        self.at(returns + latency + 1, Happening::DeviceSees { link });
    }

    pub fn is_dead(&self, link: u64) -> bool {
        self.links.get(&link).is_some_and(|link| link.is_dead)
    }

    fn device_sleeps(&mut self, device: usize, ms: u64) {
        let about = About { push: None, device: Some(device) };
        self.note(about, format!("device {device}: sleeps for {ms} ms"));
        let d = &mut self.devices[device];
        d.asleep_until = d.asleep_until.max(self.now + ms);
        let wakes = d.asleep_until;
        self.at(wakes, Happening::DeviceWakes { device });
    }

    /// Puts off what a sleeping device would do; `false` when it is awake.
    pub fn sleeps_over(&mut self, device: usize, happening: impl FnOnce() -> Happening) -> bool {
        let d = &mut self.devices[device];
        let sleeps = self.now < d.asleep_until;
        if sleeps {
            d.slept_over.push(happening());
        }
        sleeps
    }

    pub fn device_wakes(&mut self, device: usize) {
        if self.now < self.devices[device].asleep_until {
            return;
        }
        for happening in std::mem::take(&mut self.devices[device].slept_over) {
            self.after(0, happening);
        }
    }

    /// All is well from now on.
    pub fn paths_return(&mut self) {
        for device in 0..self.devices.len() {
            let d = &mut self.devices[device];
            (d.dead_until, d.asleep_until) = (self.now, self.now);
            self.after(0, Happening::DeviceWakes { device });
        }
    }
}
