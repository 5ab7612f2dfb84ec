// Keys and tokens that jose makes: `tokens.mjs ISSUER AUDIENCE` prints the key set, and tokens with the status they get.
import { webcrypto } from 'node:crypto';
import * as jose from 'jose';

globalThis.crypto ??= webcrypto; // before Node 20 it is no global

const [issuer, audience] = process.argv.slice(2);
const keys = [];
const tokens = [];
for (const alg of ['ES256', 'EdDSA', 'RS256', 'PS256', 'ES512']) {
  const { publicKey, privateKey } = await jose.generateKeyPair(alg, { extractable: true });
  const jwk = await jose.exportJWK(publicKey);
  const kid = await jose.calculateJwkThumbprint(jwk);
  keys.push({ ...jwk, kid, alg, use: 'sig' });
  const known = ['ES256', 'EdDSA', 'RS256'].includes(alg);
  const make = (change = (token) => token, head = {}) => {
    const token = new jose.SignJWT({ scope: 'a b' }).setProtectedHeader({ alg, kid, typ: 'at+jwt', ...head })
      .setIssuer(issuer).setAudience(audience).setSubject('123').setIssuedAt().setExpirationTime('5m');
    return change(token).sign(privateKey);
  };
  const add = async (name, token, status) => tokens.push({ name: `${alg}: ${name}`, token: await token, status });
  const good = known ? 200 : 401;
  await add('good', make(), good);
  await add('typ JWT', make(undefined, { typ: 'JWT' }), good);
  await add('not before now', make((token) => token.setNotBefore('0s')), good);
  await add('not before an hour', make((token) => token.setNotBefore('1h')), 401);
  await add('expired', make((token) => token.setExpirationTime(new Date(Date.now() - 300_000))), 401);
  await add('another subject type', make(undefined, { typ: 'logout+jwt' }), 401);
}
const encrypted = new jose.EncryptJWT({}).setProtectedHeader({ alg: 'dir', enc: 'A128GCM' }).setExpirationTime('5m')
  .encrypt(crypto.getRandomValues(new Uint8Array(16)));
tokens.push({ name: 'encrypted', token: await encrypted, status: 401 });
console.log(JSON.stringify({ jwks: { keys }, tokens }));
