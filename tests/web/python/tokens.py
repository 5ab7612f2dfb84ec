"""Keys and tokens that PyJWT makes: `tokens.py ISSUER AUDIENCE` prints the key set, and tokens with the status they get."""

import json
import sys
import time

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

issuer, audience = sys.argv[1:]
keys = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "RS384": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
}
jwks, tokens = [], []
now = int(time.time())
for algorithm, key in keys.items():
    jwk = json.loads(jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key()))
    jwks.append({**jwk, "kid": algorithm, "use": "sig"})
    good = {"iss": issuer, "aud": audience, "sub": "123", "exp": now + 300, "nbf": now, "iat": now}
    # RS384 by an RSA key: the key says nothing of its algorithm, and the gateway takes RS256 alone
    known = algorithm in ("ES256", "EdDSA", "RS256")
    for name, claims, status in [
        ("good", good, 200 if known else 401),
        ("two audiences", {**good, "aud": ["x", audience]}, 200 if known else 401),
        ("expired", {**good, "exp": now - 300}, 401),
        ("another issuer", {**good, "iss": "https://other.example/"}, 401),
        ("another audience", {**good, "aud": "other"}, 401),
    ]:
        token = jwt.encode(claims, key, algorithm=algorithm, headers={"kid": algorithm})
        tokens.append({"name": f"{algorithm}: {name}", "token": token, "status": status})
secret = jwt.encode(good, "a" * 32, algorithm="HS256", headers={"kid": "RS256"})
tokens.append({"name": "HS256", "token": secret, "status": 401})
unsigned = jwt.encode(good, None, algorithm="none", headers={"kid": "RS256"})
tokens.append({"name": "none", "token": unsigned, "status": 401})
print(json.dumps({"jwks": {"keys": jwks}, "tokens": tokens}))
