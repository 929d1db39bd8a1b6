"""Judges: who grades a response on a rubric, and says how hard a prompt is (section 4.2.3).

Knows grades, rubrics and what a judge is asked. A response that a judge gives no grade is
*unscored*: None, never a default.
"""
