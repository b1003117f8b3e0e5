"""Policy: what a submitter may ask of an agent's machine, as pure rules without a server or an engine.

The agent's operator trusts the queue's owner; neither trusts a submitter. So these rules see the submitter's own
arguments, before they are merged with the queue's and before macros are filled; what the queue itself sets is not
refused.
"""
