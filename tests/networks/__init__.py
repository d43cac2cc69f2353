"""Networks that no library has, and factories that ``--arch package.module:function`` names."""
