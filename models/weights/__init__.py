"""Weights: fetched or brought, verified, converted to safetensors, written as entries of the repository.

pull ──▶ download ──┐
                    ├──▶ checkpoint ──▶ conversion (translate, compare, cast) ──▶ entry
add  ───────────────┘
"""
