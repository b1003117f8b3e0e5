"""Identity in the clouds: who an agent, or a direct `launch`, is at AWS and at Google Cloud.

The operator of the machine decides it, in the agent's config. No queue and no submitter can.
"""
