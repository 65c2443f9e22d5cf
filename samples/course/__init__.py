# SPDX-License-Identifier: GPL-2.0-or-later
"""A course that leads through the lessons: chapters, questions, ideas, what to do next."""

from samples.course.lessons import CHAPTERS, LESSONS
from samples.course.records import Chapter, Lesson, Placed

__all__ = ["CHAPTERS", "LESSONS", "Chapter", "Lesson", "Placed"]
