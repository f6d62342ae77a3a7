"""Who may call: API keys, their scopes, and from where no key is needed.

A key is `vt_<id>_<secret>`: the id names it everywhere (logs, jobs, limits), the secret is 256
random bits. Redis holds a SHA-256 digest of the whole, which is enough: nobody guesses 256 bits, so
there is nothing for a slow hash to slow down. The key itself is shown once, when it is made.

A gateway on loopback asks for no key (whoever is on the machine is trusted); on any other address
it asks every caller, and does not start as long as there is no key at all.
"""
