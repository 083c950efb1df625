//! One suite for every backend, in both shapes.
//!
//! `rig.rs` opens a driver and plays the engine: it submits, sleeps, reaps and releases, in `Shape::Two` with a
//! second thread that reaps. The other files are generic functions over `D: Subject`, instantiated below.
//! What needs rights this machine does not give prints SKIPPED and the reason.

mod bounds;
mod child;
mod errors;
mod faults;
mod fuse;
mod interrupted;
mod large;
mod loop_device;
mod memlock;
mod mistakes;
mod ranges;
mod regions;
mod rig;
mod seccomp;
mod shutdown;
mod signals;
mod sleeping;
mod slow_disk;
mod transfers;
mod vectored;

use ferrio_driver::Shape;
use ferrio_driver::aio::Aio;
use ferrio_driver::fault::Fault;
use ferrio_driver::null::Null;
use ferrio_driver::uring::Uring;

use rig::{OnMemory, OnPageCache};

macro_rules! suite {
    ($name:ident, $driver:ty, $shape:expr, [$($module:ident :: $test:ident),* $(,)?]) => {
        mod $name {
            use super::*;
            $(
                #[test]
                fn $test() {
                    crate::$module::$test::<$driver>($shape);
                }
            )*
        }
    };
}

/// What every backend does.
macro_rules! common {
    ($name:ident, $driver:ty, $shape:expr, [$($more:tt)*]) => {
        suite!($name, $driver, $shape, [
            transfers::nops_come_back_in_order,
            transfers::null_targets_complete_inline,
            ranges::null_targets_have_nothing_to_discard,
            vectored::null_targets_take_segments,
            bounds::depth_bounds_what_is_in_flight,
            bounds::only_reaped_requests_are_released,
            bounds::busy_files_and_regions_stay,
            bounds::tables_are_bounded,
            bounds::reaping_keeps_to_the_room_given,
            errors::bad_operations_become_completions,
            sleeping::doorbell_wakes,
            sleeping::timeout_wakes,
            sleeping::injected_completions_are_never_slept_over,
            $($more)*
        ]);
    };
}

/// What moves data.
macro_rules! moving {
    ($name:ident, $driver:ty, $shape:expr, [$($more:tt)*]) => {
        common!($name, $driver, $shape, [
            transfers::patterns_round_trip,
            transfers::fua_and_flush,
            vectored::segments_gather_and_scatter,
            vectored::as_many_segments_as_allowed,
            vectored::bad_segments_become_completions,
            vectored::regions_of_segments_are_pinned,
            ranges::zeroed_ranges_read_as_zeros,
            ranges::discarded_ranges_leave_their_neighbours,
            ranges::bad_ranges_become_completions,
            transfers::another_size_is_another_end,
            bounds::many_requests_through_a_shallow_driver,
            sleeping::completions_wake,
            sleeping::full_batch_sleeps_and_wakes,
            bounds::halves_move_with_requests_in_flight,
            sleeping::doorbells_and_completions_mix,
            signals::nothing_is_lost_in_a_signal_storm,
            shutdown::drop_waits_for_what_is_in_flight,
            shutdown::drop_in_the_other_order,
            regions::many_regions_at_once,
            regions::memory_is_let_go_with_its_region,
            $($more)*
        ]);
    };
}

/// What is done to a file with a path.
macro_rules! real {
    ($name:ident, $driver:ty, $shape:expr) => {
        moving!(
            $name,
            $driver,
            $shape,
            [
                bounds::full_batch_gives_the_slot_back,
                transfers::short_read_at_the_end_of_the_file,
                mistakes::short_io_ends_where_it_says,
                mistakes::negative_results_are_answers,
                errors::refusals_of_the_kernel_become_completions,
                errors::bad_request_amid_a_batch_loses_no_other,
                shutdown::staged_requests_are_forgotten,
                loop_device::block_device_round_trip,
                slow_disk::direct_file_does_not_keep_the_thread,
                slow_disk::cached_file_does_not_keep_the_thread,
                slow_disk::full_device_does_not_keep_the_thread,
                slow_disk::stuck_device_leaves_helpers_to_others,
                slow_disk::drop_leaks_what_the_disk_keeps,
            ]
        );
    };
}

common!(null_one, Null, Shape::One, []);
common!(null_two, Null, Shape::Two, []);
real!(io_uring_one, Uring, Shape::One);
real!(io_uring_two, Uring, Shape::Two);
real!(aio_one, Aio, Shape::One);
real!(aio_two, Aio, Shape::Two);
moving!(io_uring_memory, OnMemory<Uring>, Shape::One, []);
moving!(aio_memory_one, OnMemory<Aio>, Shape::One, []);
moving!(aio_memory_two, OnMemory<Aio>, Shape::Two, []);
moving!(io_uring_page_cache, OnPageCache<Uring>, Shape::Two, []);
// Every request goes through the helper pool.
moving!(aio_page_cache_one, OnPageCache<Aio>, Shape::One, []);
moving!(aio_page_cache_two, OnPageCache<Aio>, Shape::Two, []);
// Without plans, `Fault` is the driver within.
common!(fault_null_one, Fault<Null>, Shape::One, []);
common!(fault_null_two, Fault<Null>, Shape::Two, []);
real!(fault_io_uring_one, Fault<Uring>, Shape::One);
real!(fault_io_uring_two, Fault<Uring>, Shape::Two);
real!(fault_aio_one, Fault<Aio>, Shape::One);
real!(fault_aio_two, Fault<Aio>, Shape::Two);

/// The known mistakes that have nothing to do with who reaps; the others are in the suites above.
macro_rules! mistakes {
    ($name:ident, $driver:ty) => {
        suite!(
            $name,
            $driver,
            Shape::One,
            [
                mistakes::a_full_queue_empties_while_one_sleeps,
                mistakes::all_that_is_in_flight_fits_the_completion_queue,
                mistakes::limits_are_those_of_the_whole,
                mistakes::a_gigabyte_is_no_errno,
            ]
        );
    };
}

mistakes!(mistakes_io_uring, Uring);
mistakes!(mistakes_aio, Aio);
mistakes!(mistakes_fault_io_uring, Fault<Uring>);
mistakes!(mistakes_fault_aio, Fault<Aio>);

/// What a plan does, over the driver `$driver`.
macro_rules! faulty {
    ($name:ident, $driver:ty, $shape:expr, [$($more:tt)*]) => {
        suite!($name, $driver, $shape, [
            faults::errors_hit_what_the_rule_says,
            faults::delays_hold_their_request_alone,
            faults::stuck_requests_wait_for_other_rules,
            faults::reordered_requests_all_come_back,
            faults::bad_plans_change_nothing,
            faults::stale_answers_stay_uncounted,
            $($more)*
        ]);
    };
}

/// What needs data to be seen.
macro_rules! faulty_real {
    ($name:ident, $driver:ty, $shape:expr) => {
        faulty!(
            $name,
            $driver,
            $shape,
            [
                faults::failed_writes_leave_the_disk_alone,
                faults::short_transfers_are_what_they_say,
                faults::torn_writes_fail_half_done,
                faults::torn_zeroes_leave_blocks_as_they_were,
                faults::same_seed_same_faults,
                faults::full_batches_draw_once,
                faults::drop_drains_what_is_stuck,
                faults::vectored_requests_meet_the_same,
                faults::senseless_requests_are_refused_first,
            ]
        );
    };
}

faulty!(faults_null_one, Null, Shape::One, []);
faulty!(faults_null_two, Null, Shape::Two, []);
faulty_real!(faults_io_uring_one, Uring, Shape::One);
faulty_real!(faults_io_uring_two, Uring, Shape::Two);
faulty_real!(faults_aio_one, Aio, Shape::One);
faulty_real!(faults_aio_two, Aio, Shape::Two);

// A gigabyte of memory each: once per backend.
suite!(
    io_uring_large,
    Uring,
    Shape::One,
    [large::gigabyte_is_not_confused_with_an_errno, large::region_beyond_a_gigabyte_works_across_the_seam,]
);
suite!(aio_large, Aio, Shape::Two, [large::gigabyte_is_not_confused_with_an_errno]);
