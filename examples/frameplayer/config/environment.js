/* eslint-env node */
'use strict';

const fs = require('fs');
const path = require('path');

/* The platform puts a `.env` file beside package.json before it builds; without one this player does with less.
   Whatever is returned here is public: it ends up in the bundle. So take what is shown, by name, and nothing else. */
function publicValue(name) {
  const file = path.join(__dirname, '..', '.env');
  if (!fs.existsSync(file)) {
    return '';
  }
  const line = fs.readFileSync(file, 'utf8').split('\n').find((text) => text.startsWith(`${name}=`));
  return line ? line.slice(name.length + 1).trim() : '';
}

module.exports = function (environment) {
  return {
    modulePrefix: 'frameplayer',
    environment,
    rootURL: '/',
    // A study lives at /studies/{uuid}/ and knows its uuid only when it's built, and frames follow one another without
    // addresses of their own (nobody should land in the middle of a study). So the router leaves the address alone,
    // and the same code works under any prefix.
    locationType: 'none',
    EmberENV: { FEATURES: {} },
    APP: {},
    recordingEnvironment: publicValue('PIPE_ENVIRONMENT')
  };
};
