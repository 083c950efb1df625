//! Simulations from a seed, one after the other: `FERRIO_SIM_SEED` replays one, `FERRIO_SIM_SEEDS` says how many there are.

use std::{
    env,
    panic::{self, RefUnwindSafe},
};

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Runs a simulation from each seed. Names the one that fails.
pub fn each(run: impl Fn(u64) + RefUnwindSafe) {
    let seeds = match number("FERRIO_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FERRIO_SIM_SEEDS").unwrap_or(2000),
    };
    for seed in seeds {
        if let Err(cause) = panic::catch_unwind(|| run(seed)) {
            eprintln!("FERRIO_SIM_SEED={seed} failed");
            panic::resume_unwind(cause);
        }
    }
}
