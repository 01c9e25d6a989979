//! Damaged packets.

use proxy_common::wire::link::Link;

use super::rows;

/// splitmix64 (Steele, Lea, Flood 2014): the same cases every time.
#[derive(Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// Other ones each time, unless the environment has a `SEED`; it is printed, to throw the same again.
    pub fn of_this_run() -> Self {
        let seed = std::env::var("SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
        eprintln!("SEED={seed}");
        Self(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.roll() % limit.max(1) as u64).expect("below a usize")
    }
}

/// Cuts, flips, overwrites, doubles; mostly in the headers.
pub fn damage(frame: &mut Vec<u8>, dice: &mut Dice) {
    for _ in 0..=dice.below(3) {
        let at = dice.below(frame.len().min(90));
        match dice.below(6) {
            0 => frame.truncate(at),
            1 if at < frame.len() => frame[at] ^= 1 << dice.below(8),
            2 if at < frame.len() => frame[at] = u8::try_from(dice.below(256)).expect("a byte"),
            3 if at < frame.len() => frame[at] = [0, 0xff, 0x45, 0x60][dice.below(4)],
            4 => {
                let piece = frame[at.min(frame.len())..].to_vec();
                frame.extend(piece.iter().take(64));
            }
            _ => {
                for byte in frame.iter_mut().skip(at).take(dice.below(16)) {
                    *byte = u8::try_from(dice.roll() & 0xff).expect("a byte");
                }
            }
        }
    }
}

/// A packet of the rows, as it is, damaged, or of no form at all.
pub fn frame(frames: &[(Vec<u8>, Link)], dice: &mut Dice) -> (Vec<u8>, Link) {
    let (mut frame, link) = frames[dice.below(frames.len())].clone();
    match dice.below(8) {
        0 => {}
        1 => {
            frame = (0..dice.below(120))
                .map(|_| u8::try_from(dice.below(256)).expect("a byte"))
                .collect();
        }
        _ => damage(&mut frame, dice),
    }
    (frame, link)
}

/// All packets of the rows.
pub fn frames() -> Vec<(Vec<u8>, Link)> {
    rows()
        .into_iter()
        .flat_map(|row| row.steps)
        .map(|step| (step.frame, step.link))
        .collect()
}
