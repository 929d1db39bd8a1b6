"""Curation: from scored rows to the examples SFT trains on (section 4.2.3).

`posttrain.curation.curate.curate` runs the steps; a cleaning rule needs only what is imported here.

    from posttrain.curation import Drop, map_assistant
"""

from posttrain.curation.contract import Drop, Rule, map_assistant

__all__ = ["Drop", "Rule", "map_assistant"]
