"""What a submitter may ask of an agent's machine: pure rules, with no server and no engine behind them.

The agent's operator trusts the queue's owner; neither trusts a submitter. So these rules see the submitter's own
arguments, before they are merged with the queue's and before macros are filled; what the queue itself sets is not
refused.
"""

from __future__ import annotations

from prefect_launch.policy.secure_mode import locked_parts, secured
from prefect_launch.policy.submitter_options import (
    check_path_values,
    check_submitter_args,
    check_submitter_secrets,
    check_variables_name_no_secret,
    locked_options,
    merge_resource_args,
    secrets_pattern,
)
from prefect_launch.spec.option_names import normalise_option, normalise_options, read_env

__all__ = [
    "check_path_values",
    "check_submitter_args",
    "check_submitter_secrets",
    "check_variables_name_no_secret",
    "locked_options",
    "locked_parts",
    "merge_resource_args",
    "normalise_option",
    "normalise_options",
    "read_env",
    "secrets_pattern",
    "secured",
]
