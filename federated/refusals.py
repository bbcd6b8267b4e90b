"""Why a site does not answer: one of a few words, and never more than whoever asked may know."""

from typing import Literal

Reason = Literal[
    "not_signed_by_the_coordinator",
    "not_a_request",
    "clock",
    "plan_not_approved",
    "run_is_another_plan",
    "run_ended",
    "another_version",
    "not_in_the_plan",
    "too_few_sites",
    "too_few_known_sites",
    "other_sites_than_before",
    "people_differ_by_few",
    "people_known_already",
    "too_many_exchanges",
    "keys_do_not_fit",
    "step_answered_already",
    "step_out_of_order",
    "kind_not_allowed",
    "statistic_not_allowed",
    "statistic_unknown",
    "asks_beyond_the_plan",
    "scales_differ",
    "features_differ",
    "models_differ",
    "model_too_steep",
    "change_plan_differs",
    "too_few_subjects",
    "too_few_of_a_class",
    "too_few_in_a_fold",
    "privacy_budget_spent",
    "privacy_required",
    "ledger_not_available",
    "log_shrank",
    "log_not_available",
    "policy_not_readable",
    "data_not_readable",
    "data_changed",
    "state_not_whole",
    "not_computed",
]


class RefusedError(Exception):
    """A request that is answered with a reason."""

    def __init__(self, reason: Reason):
        super().__init__(reason)
        self.reason: Reason = reason
