"""N:M layers: which operands a training scheme prunes, and modules that multiply so."""
