"""The report: one folder of static pages with every paper's claims, figures and timings."""

from addis.report._build import build as build
