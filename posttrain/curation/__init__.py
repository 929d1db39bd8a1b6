"""Curation: from scored rows to the examples SFT trains on (section 4.2.3).

`posttrain.curation.curate.curate` runs the steps; a cleaning rule or a filter needs only what is
imported here.

    from posttrain.curation import Drop, map_assistant
"""

from posttrain.curation.contract import Drop, Rule, Table, map_assistant, table

__all__ = ["Drop", "Rule", "Table", "map_assistant", "table"]
