//! The one suite that every adapter runs: one test per promise, named as the sentence that it keeps. The promises that
//! users rely on are in section 3 of `docs/contract.md`, which names the tests here that keep them.
//!
//! An adapter writes a [`Fixture`] and one line:
//!
//! ```ignore
//! relay_conformance::conformance_tests!(embedded_memory, MemoryFixture::open().await);
//! ```
//!
//! which expands to one `#[tokio::test]` per promise, with a fixture each:
//! `embedded_memory::an_extended_lease_keeps_the_job_hidden`.
//! Differences that the contract allows between adapters are read from
//! [`Capabilities`](relay_bridge::broker::Capabilities) and tested as claimed; no promise is skipped.
//!
//! # What fails
//!
//! A promise is judged once: an assertion that does not hold has failed. On a broker in a process of its own a call may get no
//! answer because the machine is busy: [`Calls`] repeats it as users do, and counts it. An event that must come is
//! waited for; one that must not have come yet is judged by when it came, not by when a test meant to look.
//!
//! # Layout
//!
//! - [`payloads`]: bytes, headers, limits. [`identity`]: a retry is one job.
//! - [`leases`]: one holder at a time, attempts, settling. [`taking`]: waiting, workers, queues, dropped futures.
//! - [`outcomes`]: one outcome per run, in every race. [`expiry`]: deadlines, sweeps, retention.
//! - [`claims`]: a worker's word decides nothing that is relay's.
//! - [`reading`]: cursors, order, isolation. [`waiting`]: waits that wake and end.
//! - [`naming`]: the client's own key and meta. [`endings`]: dead letters, redrive, rerun, erasure. [`letters`]: which dead
//!   letters are kept. [`reruns`]: quotas of reruns, and the words of refusals.
//! - [`sharing`]: fairness, quotas, pauses. [`operating`]: listings, policies, and what a crash leaves. [`scaling`]: looks for scalers.
//! - [`faults`]: a broker that fails from a seed. [`testing`]: real servers of the brokers.

#![expect(clippy::unwrap_used, reason = "a promise that does not hold panics: that is the suite's answer")]
#![expect(missing_docs, reason = "a promise's name is the sentence that documents it")]

mod calls;
pub mod claims;
mod columns;
pub mod endings;
pub mod expiry;
pub mod faults;
mod fixture;
pub mod identity;
pub mod leases;
pub mod letters;
pub mod naming;
pub mod operating;
pub mod outcomes;
pub mod payloads;
pub mod reading;
pub mod reruns;
pub mod scaling;
pub mod sharing;
mod stage;
pub mod taking;
pub mod testing;
pub mod waiting;

use std::future::Future;
use std::pin::Pin;

pub use calls::{Calls, Pace};
pub use columns::{COLUMNS, Column, document};
pub use fixture::Fixture;
pub use operating::newer_envelope;

/// Every promise of the suite as (module, name), in the order of the modules.
pub const PROMISES: &[(&str, &str)] = crate::conformance_tests!(@each names());

/// The function that tests one promise.
pub type Run = for<'a> fn(&'a dyn Fixture) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Every promise as (name, its test), for a harness of one's own: a broker in real time wants more tests at once than
/// there are cores, because most of them wait.
pub const RUNS: &[(&str, Run)] = crate::conformance_tests!(@each runs());

/// Expands to a module of one `#[tokio::test]` per promise. The second argument is an expression that opens a
/// [`Fixture`]; it may `.await` and is evaluated once per test. The crate needs `tokio` with `macros` and
/// `rt-multi-thread`.
#[macro_export]
macro_rules! conformance_tests {
    ($module:ident, $fixture:expr) => {
        mod $module {
            #[allow(unused_imports)]
            use super::*;

            $crate::conformance_tests!(@each tests($fixture));
        }
    };
    (@names() $($group:ident { $($promise:ident)* })*) => {
        &[$($((stringify!($group), stringify!($promise)),)*)*]
    };
    (@runs() $($group:ident { $($promise:ident)* })*) => {
        &[$($((stringify!($promise), |fixture| ::std::boxed::Box::pin($group::$promise(fixture))),)*)*]
    };
    (@tests($fixture:expr) $($group:ident { $($promise:ident)* })*) => {
        $crate::conformance_tests!(@flat ($fixture) $($($group $promise)*)*);
    };
    (@flat ($fixture:expr) $($group:ident $promise:ident)*) => {
        $(
            #[::tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                let fixture = $fixture;
                ::std::boxed::Box::pin($crate::$group::$promise(&fixture)).await;
            }
        )*
    };
    (@each $kind:ident $arguments:tt) => {
        $crate::conformance_tests! {
            @$kind $arguments
            payloads {
                payloads_of_every_byte_value_survive
                empty_payloads_survive
                payloads_of_maximal_size_survive
                a_payload_one_byte_too_large_is_refused_with_both_numbers
                a_policy_above_the_brokers_limit_takes_no_larger_payload
                a_result_larger_than_the_broker_takes_ends_its_run_as_failed
                headers_content_type_and_encoding_survive
                a_failure_reaches_the_client_as_it_was_recorded
            }
            identity {
                concurrent_creates_of_one_key_make_one_job
                a_replay_is_answered_after_the_first_write_is_durable
                a_replay_answers_the_same_receipt_and_result
                another_body_under_a_key_finds_the_first_fingerprint
                what_is_not_in_the_fingerprint_stands_as_it_first_came
                a_key_is_scoped_by_client_and_queue
                submissions_without_a_key_are_jobs_of_their_own
                the_same_job_enqueued_twice_is_known
                a_key_whose_record_expired_starts_anew_without_the_old_result
                a_key_whose_record_expired_starts_anew_before_any_sweep
                a_late_result_of_an_older_run_does_not_finish_a_new_one
                a_known_key_is_answered_where_the_quota_is_full
            }
            leases {
                a_leased_job_is_hidden_until_its_lease_ends
                an_extended_lease_keeps_the_job_hidden
                a_lease_ends_at_lease_max_however_often_it_is_extended
                a_lease_that_ended_is_not_extended
                settling_twice_has_one_effect
                a_late_settle_has_no_second_effect
                a_settle_after_the_lease_ended_loses_no_job
                a_retry_is_never_before_its_delay
                a_retry_spends_an_attempt_and_a_hand_back_does_not
                parking_spends_no_attempt
                a_crashed_worker_spends_an_attempt_and_the_last_one_is_told
                progress_is_taken_from_the_holder
                a_receipt_that_no_broker_gave_is_lost_or_invalid
                a_receipt_is_good_beyond_the_process_that_gave_it
                a_job_is_handed_back_and_retried_by_a_receipt_of_another_process
                a_leased_job_counts_as_running_in_the_next_process_and_ends_with_its_lease
                a_lease_ends_at_lease_max_whichever_process_extends_it
                a_receipt_whose_job_somebody_else_holds_is_lost_in_every_process
                a_receipt_that_names_another_queue_or_client_is_good_for_nothing
            }
            taking {
                a_lease_returns_at_once_when_something_is_there
                a_lease_is_empty_after_its_wait
                a_waiting_lease_is_woken_by_a_new_job
                a_waiting_lease_is_woken_when_a_delay_ends
                a_job_without_a_delay_is_in_line_also_where_the_clock_stepped_back
                a_waiting_lease_is_woken_by_a_hand_back
                a_lease_gives_no_more_than_was_asked_for
                a_lease_gives_bounded_bytes_and_the_next_one_goes_on
                two_workers_never_hold_the_same_job
                queues_are_asked_in_the_order_given
                a_waiting_lease_is_woken_by_any_of_its_queues
                an_unknown_queue_is_not_found
                a_dropped_lease_future_loses_nothing
            }
            outcomes {
                a_second_result_is_refused
                a_late_attempts_result_wins_if_it_is_first
                a_run_that_was_recorded_but_not_settled_keeps_its_result
                a_result_of_a_smaller_run_never_replaces_a_greater_one
                a_result_without_a_job_is_not_found
                a_result_that_names_another_client_queue_or_run_ends_nothing
                a_result_recorded_without_a_lease_ends_the_run
                a_cancelled_queued_job_never_starts
                a_holder_learns_of_a_cancel_at_its_next_heartbeat
                a_cancelled_job_whose_holder_retries_does_not_come_back
                cancelling_a_finished_job_answers_its_outcome
                cancel_and_completion_racing_end_in_one_outcome
                cancel_completion_and_expiry_racing_end_in_one_outcome
                many_results_for_one_run_racing_leave_one
            }
            claims {
                a_worker_that_says_how_long_to_keep_is_not_believed
                what_is_relays_in_a_result_comes_from_the_record
                a_result_that_cannot_be_kept_ends_its_run_once_and_relay_keeps_the_letter
                a_megabyte_of_detail_ends_its_run_once
                the_same_result_again_is_the_first_one
                a_claim_that_a_worker_names_is_not_taken_for_its_words
                a_run_that_failed_has_a_letter_also_without_its_workers
                a_page_is_bounded_by_what_its_entries_take
            }
            expiry {
                expiry_is_recorded_without_any_worker
                an_expired_job_does_not_start
                the_holder_of_an_expired_job_is_told
                a_sweep_is_one_bounded_step
                a_sweep_writes_nothing_for_finished_runs_at_any_edge
                a_result_is_readable_for_its_retention_after_completion
                a_result_past_its_keeping_is_absent_before_any_sweep
                a_delayed_job_that_is_cancelled_keeps_its_key_as_long_as_one_that_ran
                retention_is_fixed_at_acceptance
                a_job_without_a_key_leaves_only_its_result
            }
            reading {
                results_come_in_the_order_in_which_they_were_recorded
                a_cursor_resumes_with_nothing_lost_or_doubled
                a_cursor_from_before_the_first_result_resumes
                reading_from_now_skips_what_was_there
                a_cursor_of_another_log_starts_over_and_says_so
                a_cursor_older_than_retention_starts_over_and_says_so
                a_reader_goes_on_past_results_that_were_removed_before_older_ones
                another_clients_cursor_is_invalid
                a_result_that_a_later_run_replaced_is_no_longer_among_the_results
                a_page_is_bounded_in_entries_and_bytes
                a_result_larger_than_a_page_comes_alone
                a_client_sees_nothing_of_another
                a_follower_sees_each_result_once_while_many_record
            }
            waiting {
                everyone_who_waits_for_a_job_is_woken_by_its_outcome
                an_expiry_wakes_who_waits
                a_wait_ends_with_the_open_job_after_its_time
                a_wait_of_any_length_is_taken
                a_waiting_page_is_woken_by_a_result
                a_waiting_page_ends_empty_after_its_time
                a_dropped_wait_costs_nothing
            }
            naming {
                results_carry_the_clients_own_key_and_meta
                a_later_run_has_the_key_and_the_meta_of_the_first
                results_are_read_by_queue_and_key_prefix_to_the_end
                a_wait_for_some_results_ends_with_another_and_moves_past_it
                jobs_are_listed_by_key_prefix_to_the_end
                a_list_of_some_queues_tells_nothing_of_the_others
                a_job_is_found_in_its_own_queue_and_in_no_other
                dead_letters_are_listed_by_key_prefix_to_the_end
                erasing_removes_meta_and_keeps_the_key
            }
            endings {
                a_crash_between_dead_letter_result_and_settle_is_repeated_harmlessly
                a_dead_letter_keeps_payload_and_reason
                a_dead_letter_is_taken_back_when_the_run_succeeded
                a_redrive_starts_the_next_run_once
                a_job_without_a_key_is_redriven_from_its_dead_letter
                a_redrive_works_long_after_the_record_is_gone
                a_dead_letter_is_kept_for_its_retention_and_no_longer
                a_dead_letter_is_purged_once
                dead_letters_are_listed_newest_first_page_by_page
                a_rerun_starts_the_next_run_once
                a_rerun_of_an_open_run_is_a_conflict
                every_outcome_can_be_rerun
                many_reruns_and_redrives_at_once_start_one_run
                a_job_without_a_key_is_rerun_only_where_the_queue_keeps_it
                erasing_removes_payload_and_result_and_keeps_outcome_and_key
            }
            letters {
                a_letter_of_a_run_that_nobody_gave_out_is_not_kept
                a_letter_has_what_relay_knows_of_its_job
                a_letter_goes_when_its_run_is_cancelled_or_expires
                a_letter_goes_when_a_later_attempt_of_its_run_succeeds
                a_retraction_is_kept_to_the_queues_of_its_caller
                a_letter_stays_whatever_becomes_of_later_runs
                a_letter_of_an_erased_job_is_not_kept
                a_letter_without_the_payload_that_its_client_sent_is_not_kept
                a_redrive_does_not_touch_another_job_under_the_key
                a_letter_that_comes_again_after_its_redrive_starts_nothing
                dead_letters_are_listed_by_when_they_were_kept
            }
            reruns {
                a_rerun_is_bounded_like_a_submission_and_a_redrive_is_not
                many_reruns_do_not_pass_the_quota
                a_rerun_in_a_paused_queue_waits
                a_keyless_job_that_is_recorded_and_not_settled_is_not_rerun
                refusals_about_a_job_have_the_same_words_everywhere
                refusals_about_a_queue_have_the_same_words_everywhere
            }
            sharing {
                a_lone_job_is_not_held_up_by_another_clients_backlog
                weights_share_a_queue
                many_clients_share_alike
                jobs_of_one_client_that_were_not_retried_come_oldest_first_within_reason
                failing_jobs_in_backoff_do_not_hold_up_a_healthy_one
                a_clients_running_jobs_are_bounded
                a_waiting_lease_is_woken_when_a_client_may_run_again
                a_clients_waiting_jobs_are_bounded
                the_bytes_that_a_client_keeps_are_bounded_or_such_a_policy_is_refused
                a_known_key_is_answered_where_no_more_bytes_are_kept
                a_paused_queue_gives_nothing_until_it_is_resumed
                a_pause_of_one_queue_does_not_hold_up_another
            }
            operating {
                an_envelope_of_a_newer_version_is_handed_back_and_not_dead_lettered
                jobs_are_listed_newest_first_page_by_page
                jobs_of_one_moment_are_listed_once_each
                jobs_are_listed_by_queue_and_state
                depth_counts_what_waits_what_is_parked_and_what_runs
                a_policy_is_read_as_it_was_written_and_applies_live
                writers_of_different_settings_of_one_queue_all_keep_theirs
                a_policy_that_changed_meanwhile_is_not_overwritten
                provisioning_plans_what_it_does_and_does_it_once
                a_destructive_change_needs_force
                accepted_jobs_survive_a_crash_of_the_broker
                results_and_cursors_survive_a_crash_of_the_broker
                leases_and_attempts_survive_a_crash_of_the_broker
                policies_and_pauses_survive_a_crash_of_the_broker
                fairness_and_quotas_survive_a_crash_of_the_broker
                a_rerun_and_an_erasure_survive_a_crash_of_the_broker
            }
            scaling {
                a_look_counts_what_could_start_what_runs_and_what_ended
                a_look_leaves_out_what_a_clients_running_limit_holds_back_where_that_is_known
                the_last_pace_that_was_kept_is_read_by_others
            }
        }
    };
}
