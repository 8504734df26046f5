/** Formats of JSON Schema that a grammar is made of, as regular expressions. Each is of the format, not all of the format is in it. */

const DATE =
  '\\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])|(0[469]|11)-(0[1-9]|[12]\\d|30)|02-(0[1-9]|1\\d|2[0-8]))'
const TIME = '([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)'
const BYTE = '(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)'
const LABEL = '[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?'
const HOST = `${LABEL}(\\.${LABEL}){0,4}`

/** RFC 3339 (dates and times), ISO 8601 (durations), RFC 4291, RFC 9562, RFC 1123, RFC 5321 without quotes, RFC 3986. */
export const FORMATS: Readonly<Record<string, string>> = {
  date: DATE,
  time: TIME,
  'date-time': `${DATE}T${TIME}`,
  duration: 'P(\\d{1,4}W|\\d{1,4}Y|\\d{1,4}M|\\d{1,4}D|(\\d{1,4}D)?T(\\d{1,4}H(\\d{1,4}M)?|\\d{1,4}M(\\d{1,4}S)?|\\d{1,4}S))',
  ipv4: `${BYTE}\\.${BYTE}\\.${BYTE}\\.${BYTE}`,
  ipv6: '([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}',
  uuid: '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}',
  hostname: HOST,
  email: `[A-Za-z0-9_+-]{1,32}(\\.[A-Za-z0-9_+-]{1,16}){0,2}@${LABEL}(\\.${LABEL}){0,3}\\.[A-Za-z]{2,12}`,
  uri: `[a-z][a-z0-9+.-]{1,15}://${HOST}(:\\d{1,4})?(/[A-Za-z0-9._~!$&'()*+,;=:@-]{0,64}){0,16}(\\?[A-Za-z0-9._~!$&'()*+,;=:@/-]{0,128})?`,
}
